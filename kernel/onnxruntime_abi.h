// The part of onnxruntime's C API that one operator needs. onnxruntime's Python wheels contain no headers.
//
// All functions belong to version 1 of OrtApi, in which each function has a fixed index that onnxruntime guarantees not
// to change. OrtCustomOp is the struct of version 17. onnxruntime does not read fields that were added after `version`.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtValue;
struct OrtShape;  // OrtTensorTypeAndShapeInfo
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtCustomOp;

constexpr uint32_t ORT_VERSION = 17;
constexpr int ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2;     // OrtErrorCode
constexpr int ORT_FLOAT = 1, ORT_INT64 = 7;               // ONNXTensorElementDataType

struct OrtApi {
  void (*functions[102])();

  template <class Function, int place>
  Function* at() const { return reinterpret_cast<Function*>(functions[place]); }

  OrtStatus* create_status(int code, const char* message) const {
    return at<OrtStatus*(int, const char*), 0>()(code, message);
  }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** domain) const {
    return at<OrtStatus*(const char*, OrtCustomOpDomain**), 26>()(name, domain);
  }
  OrtStatus* add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return at<OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*), 27>()(domain, op);
  }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return at<OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*), 28>()(options, domain);
  }
  OrtStatus* data(const OrtValue* value, void** data) const {
    return at<OrtStatus*(OrtValue*, void**), 51>()(const_cast<OrtValue*>(value), data);
  }
  OrtStatus* dimensions_count(const OrtShape* shape, size_t* count) const {
    return at<OrtStatus*(const OrtShape*, size_t*), 61>()(shape, count);
  }
  OrtStatus* dimensions(const OrtShape* shape, int64_t* sizes, size_t count) const {
    return at<OrtStatus*(const OrtShape*, int64_t*, size_t), 62>()(shape, sizes, count);
  }
  OrtStatus* shape(const OrtValue* value, OrtShape** shape) const {
    return at<OrtStatus*(const OrtValue*, OrtShape**), 65>()(value, shape);
  }
  OrtStatus* input(const OrtKernelContext* context, size_t number, const OrtValue** value) const {
    return at<OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**), 90>()(context, number, value);
  }
  OrtStatus* output(OrtKernelContext* context, size_t number, const int64_t* sizes, size_t count,
                    OrtValue** value) const {
    return at<OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**), 91>()(context, number, sizes,
                                                                                              count, value);
  }
  void release(OrtShape* shape) const { at<void(OrtShape*), 99>()(shape); }
};

struct OrtApiBase {
  const OrtApi* (*get_api)(uint32_t version);
  const char* (*version_string)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*create_kernel)(const OrtCustomOp*, const OrtApi*, const void* info);
  const char* (*name)(const OrtCustomOp*);
  const char* (*provider)(const OrtCustomOp*);
  int (*input_type)(const OrtCustomOp*, size_t);
  size_t (*input_count)(const OrtCustomOp*);
  int (*output_type)(const OrtCustomOp*, size_t);
  size_t (*output_count)(const OrtCustomOp*);
  void (*compute)(void* kernel, OrtKernelContext*);
  void (*destroy)(void* kernel);
  int (*input_is_optional)(const OrtCustomOp*, size_t);
  int (*output_is_optional)(const OrtCustomOp*, size_t);
  int (*input_memory)(const OrtCustomOp*, size_t);
  int (*least_variadic_inputs)(const OrtCustomOp*);
  int (*variadic_inputs_are_alike)(const OrtCustomOp*);
  int (*least_variadic_outputs)(const OrtCustomOp*);
  int (*variadic_outputs_are_alike)(const OrtCustomOp*);
  OrtStatus* (*create_kernel_or_say_why)(const OrtCustomOp*, const OrtApi*, const void* info, void** kernel);
  OrtStatus* (*compute_or_say_why)(void* kernel, OrtKernelContext*);
  OrtStatus* (*infer_shape)(const OrtCustomOp*, void* context);
  int (*first_version)(const OrtCustomOp*);
  int (*last_version)(const OrtCustomOp*);
};
