# The scoring service: contract/, kernel/, service/ and a bundle. No torch, no compiler, no root.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /build
RUN python -m venv /opt/ctr
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY contract contract
COPY kernel kernel
COPY service service
RUN /opt/ctr/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[cpu]" \
    && cd / && /opt/ctr/bin/python -c "import kernel, onnxruntime; kernel.register(onnxruntime.SessionOptions())"

FROM python:3.11-slim-bookworm
RUN useradd --system --no-create-home --uid 10001 ctr
COPY --from=build /opt/ctr /opt/ctr
COPY deploy/demo /bundle
ENV PATH=/opt/ctr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CTR_BUNDLE=/bundle \
    CTR_HOST=0.0.0.0 \
    CTR_PORT=8000
USER ctr
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=2s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['CTR_PORT'] + '/readyz', timeout=1)"]
CMD ["python", "-m", "service"]
