# Builds an image of the scoring service: contract/, kernel/, service/ and a bundle. It contains neither torch nor a
# compiler, and does not run as root.
#
#   docker build -t stec-ctr .
#   docker build -t stec-ctr:cuda --build-arg RUNTIME=cuda .        includes CUDA's libraries; the host needs the driver
#   docker build -t stec-ctr --build-arg BASE=python:3.13-slim-bookworm .      any Python from 3.11 to 3.14
#
# The command `python -m service.collect` runs ctr-collect instead of the scoring service.
#
# To serve another bundle, mount it at /bundle. To serve a store, mount it, and set CTR_BUNDLE= (empty) and CTR_STORE.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
RUN python -m venv --without-pip /opt/ctr
ARG RUNTIME=cpu
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY contract contract
COPY kernel kernel
COPY service service
RUN python -m pip --python /opt/ctr/bin/python install --no-cache-dir --disable-pip-version-check \
        -c constraints.txt ".[${RUNTIME}]" \
    && cd / && /opt/ctr/bin/python -c "import kernel, onnxruntime; kernel.register(onnxruntime.SessionOptions())" \
    && /opt/ctr/bin/python -m compileall -q /opt/ctr/lib

FROM ${BASE}
ARG VERSION=0.12.0
LABEL org.opencontainers.image.title="stec-ctr" \
      org.opencontainers.image.description="Click probabilities of ad candidates, by a STEC model" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
# A volume that is mounted at one of these folders gets its owner, so that the servers can write to it.
RUN useradd --system --no-create-home --uid 10001 ctr \
    && install -d -o ctr -m 0750 /var/lib/ctr/requests /var/lib/ctr/events
COPY --from=build /opt/ctr /opt/ctr
COPY deploy/demo /bundle
ENV PATH=/opt/ctr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CTR_BUNDLE=/bundle \
    CTR_HOST=0.0.0.0 \
    CTR_PORT=8000
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=2s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['CTR_PORT'] + '/readyz', timeout=1)"]
# With the exec form, the supervisor receives SIGTERM. It then finishes the requests in flight and exits with code 0.
CMD ["python", "-m", "service"]
