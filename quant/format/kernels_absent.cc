// Stands in for kernels.cu in a build without CUDA, so that callers need no #ifdef.
#include "base/error.h"
#include "quant/format/device.h"
#include "quant/format/kernels.h"

namespace nibble {
namespace {

constexpr const char* kNoCuda =
    "this build of nibble has no CUDA; scripts/setup --cuda builds one that has";

}  // namespace

CudaGpus cuda_gpus() { return {0, kNoCuda}; }

void cuda_decode(GgmlType, const std::byte*, void*, DeviceFloat, int64_t, void*) { fail(kNoCuda); }
void cuda_encode(GgmlType, const float*, std::byte*, int64_t, EncodeMethod, void*) {
  fail(kNoCuda);
}
void cuda_encode_with(GgmlType, const float*, const float*, std::byte*, int64_t, void*) {
  fail(kNoCuda);
}
void cuda_fake_quantize(GgmlType, const float*, const TrainedScales&, float*, int64_t, void*) {
  fail(kNoCuda);
}
void cuda_fake_quantize_backward(GgmlType, const float*, const TrainedScales&, const float*, float*,
                                 float*, int64_t, Estimator, void*) {
  fail(kNoCuda);
}
void cuda_follow(GgmlType, float*, const TrainedScales&, const TrainedScales&, int64_t, void*) {
  fail(kNoCuda);
}
void cuda_decode_rows(int, GgmlType, const std::byte*, float*, int64_t) { fail(kNoCuda); }
void cuda_encode_rows(int, GgmlType, const float*, std::byte*, int64_t, EncodeMethod) {
  fail(kNoCuda);
}

}  // namespace nibble
