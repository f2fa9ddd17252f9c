// The onnxruntime operator `ctr.stec::Score`: the serving graph in a single node. export/graphs/kernel.py creates it.
#include <exception>
#include <initializer_list>

#include "onnxruntime_abi.h"
#include "stec.h"

namespace {

enum Input { SIZES, TABLE, OFFSETS, ALPHA, WEIGHTS, CONTEXT_IDS, CANDIDATE_IDS, REQUEST_INDEX, CONTEXT_VALUES,
             CANDIDATE_VALUES, INPUTS };

const OrtApi* api;

// An exception that never leaves this file: compute() returns its status to onnxruntime.
struct Failure {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status) throw Failure{status};
}

[[noreturn]] void refuse(const char* why) { throw Failure{api->create_status(ORT_INVALID_ARGUMENT, why)}; }

struct Tensor {
  const void* data = nullptr;
  int64_t sizes[2] = {1, 1};
  size_t rank = 0;
};

Tensor read(const OrtKernelContext* context, size_t number) {
  const OrtValue* value;
  check(api->input(context, number, &value));
  OrtShape* shape;
  check(api->shape(value, &shape));
  Tensor tensor;
  OrtStatus* failed = api->dimensions_count(shape, &tensor.rank);
  const bool fits = !failed && tensor.rank <= 2;
  if (fits) failed = api->dimensions(shape, tensor.sizes, tensor.rank);
  api->release(shape);
  check(failed);
  if (!fits) refuse("an input has more than two dimensions");
  void* data;
  check(api->data(value, &data));
  tensor.data = data;
  return tensor;
}

const char* misfit(const stec::Sizes& s, const Tensor (&in)[INPUTS]) {
  const auto is = [&](Input number, std::initializer_list<int64_t> sizes) {
    size_t at = 0;
    for (int64_t size : sizes)
      if (in[number].sizes[at++] != size) return false;
    return in[number].rank == sizes.size();
  };
  const int64_t requests = in[CONTEXT_IDS].sizes[0], candidates = in[CANDIDATE_IDS].sizes[0];
  if (!is(TABLE, {in[TABLE].sizes[0], s.width})) return "the embedding table is not [rows, width]";
  if (!is(OFFSETS, {s.context_categorical + s.candidate_categorical})) return "offsets: not one for each field";
  const int64_t numeric = s.numeric_fields();
  if (!is(ALPHA, {numeric, s.width}) && !is(ALPHA, {2 * numeric, s.width}) && !is(ALPHA, {3 * numeric, s.width}))
    return "alpha is not [numeric fields, width], with or without vectors for missing numbers and shifts";
  if (!is(WEIGHTS, {s.weights()})) return "weights: wrong number for these sizes";
  if (!is(CONTEXT_IDS, {requests, s.context_categorical})) return "context_ids is not [requests, fields]";
  if (!is(CANDIDATE_IDS, {candidates, s.candidate_categorical})) return "candidate_ids is not [candidates, fields]";
  if (!is(REQUEST_INDEX, {candidates})) return "request_index is not [candidates]";
  if (s.context_numeric && !is(CONTEXT_VALUES, {requests, s.context_numeric}))
    return "context_values is not [requests, fields]";
  if (s.candidate_numeric && !is(CANDIDATE_VALUES, {candidates, s.candidate_numeric}))
    return "candidate_values is not [candidates, fields]";
  return nullptr;
}

void run(OrtKernelContext* context) {
  Tensor in[INPUTS];
  for (size_t number = 0; number < INPUTS; ++number) in[number] = read(context, number);
  const auto integers = [&](Input number) { return static_cast<const int64_t*>(in[number].data); };
  const auto floats = [&](Input number) { return static_cast<const float*>(in[number].data); };
  if (in[SIZES].rank != 1 || in[SIZES].sizes[0] != 9)
    refuse("sizes has not the nine numbers that this kernel reads: export the run again");
  const int64_t* n = integers(SIZES);  // in the order of stec::Sizes
  const stec::Sizes sizes{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]};
  if (!sizes.are_sane()) refuse("sizes: a number is out of range: export the run again");
  if (const char* why = misfit(sizes, in)) refuse(why);
  // The vectors of missing numbers follow alpha, and the shifts follow them.
  const auto numeric_vectors = [&](int64_t part) {
    const int64_t start = part * sizes.numeric_fields();
    return in[ALPHA].sizes[0] > start ? floats(ALPHA) + start * sizes.width : nullptr;
  };
  const stec::Model model{sizes, in[TABLE].sizes[0], floats(TABLE), integers(OFFSETS), numeric_vectors(0),
                          numeric_vectors(1), numeric_vectors(2), floats(WEIGHTS)};
  const stec::Input input{in[CONTEXT_IDS].sizes[0], in[CANDIDATE_IDS].sizes[0], integers(CONTEXT_IDS),
                          integers(CANDIDATE_IDS),  integers(REQUEST_INDEX),    floats(CONTEXT_VALUES),
                          floats(CANDIDATE_VALUES)};
  if (const char* why = stec::problem(model, input)) refuse(why);
  OrtValue* logit;
  check(api->output(context, 0, &input.candidates, 1, &logit));
  void* out;
  check(api->data(logit, &out));
  stec::score(model, input, static_cast<float*>(out));
}

OrtStatus* compute(void*, OrtKernelContext* context) {
  try {
    run(context);
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {  // for example, out of memory
    return api->create_status(ORT_FAIL, error.what());
  }
}

int input_type(const OrtCustomOp*, size_t number) {
  switch (number) {
    case TABLE: case ALPHA: case WEIGHTS: case CONTEXT_VALUES: case CANDIDATE_VALUES: return ORT_FLOAT;
    default: return ORT_INT64;
  }
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const void*, void** kernel) {
  static char stateless;
  *kernel = &stateless;
  return nullptr;
}

const OrtCustomOp score_op{
    .version = ORT_VERSION,
    .create_kernel = nullptr,
    .name = [](const OrtCustomOp*) { return "Score"; },
    .provider = [](const OrtCustomOp*) { return "CPUExecutionProvider"; },
    .input_type = input_type,
    .input_count = [](const OrtCustomOp*) -> size_t { return INPUTS; },
    .output_type = [](const OrtCustomOp*, size_t) { return ORT_FLOAT; },
    .output_count = [](const OrtCustomOp*) -> size_t { return 1; },
    .compute = nullptr,
    .destroy = [](void*) {},
    .input_is_optional = [](const OrtCustomOp*, size_t) { return 0; },
    .output_is_optional = [](const OrtCustomOp*, size_t) { return 0; },
    .input_memory = [](const OrtCustomOp*, size_t) { return 0; },
    .least_variadic_inputs = [](const OrtCustomOp*) { return 1; },
    .variadic_inputs_are_alike = [](const OrtCustomOp*) { return 0; },
    .least_variadic_outputs = [](const OrtCustomOp*) { return 1; },
    .variadic_outputs_are_alike = [](const OrtCustomOp*) { return 0; },
    .create_kernel_or_say_why = create,
    .compute_or_say_why = compute,
    .infer_shape = nullptr,
    .first_version = [](const OrtCustomOp*) { return 1; },
    .last_version = [](const OrtCustomOp*) { return 1; },
};

}  // namespace

// onnxruntime calls this function when the options of a session name this library.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  api = base->get_api(ORT_VERSION);
  if (!api)
    return base->get_api(1)->create_status(ORT_FAIL, "this onnxruntime is older than 1.17: install a newer one");
  if (!stec_processor_can()) return api->create_status(ORT_FAIL, "this processor has no AVX2 and FMA");
  OrtCustomOpDomain* domain;
  if (OrtStatus* failed = api->create_domain("ctr.stec", &domain)) return failed;
  if (OrtStatus* failed = api->add_operator(domain, &score_op)) return failed;
  return api->add_domain(options, domain);
}
