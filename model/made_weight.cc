#include "model/made_weight.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace nibble {
namespace {

// 16 MB as float32: so much exists besides a weight that is cast.
constexpr int64_t kPieceWeights = int64_t{1} << 22;

/// What the storage of a made weight holds: one NaN, which all elements share, and the way to their
/// values.
struct Made {
  torch::Tensor nan;  // [1], on the weight's device
  MakeRows make;
  static void destroy(void* made) { delete static_cast<Made*>(made); }
};

const Made* made_of(const torch::Tensor& weight) {
  const c10::DataPtr& data = weight.storage().data_ptr();
  return data.get_deleter() == &Made::destroy ? static_cast<const Made*>(data.get_context())
                                              : nullptr;
}

/// Of rows from `first` on, as many as make up `sizes`.
torch::Tensor made_rows(const Made& made, int64_t first, at::IntArrayRef sizes,
                        torch::Dtype dtype) {
  const torch::NoGradGuard no_grad;
  torch::Tensor values = torch::empty(sizes, made.nan.options().dtype(dtype));
  torch::Tensor rows = values.view({-1, values.size(-1)});
  if (dtype == torch::kFloat32 && values.is_cpu()) {
    made.make(first, rows);
    return values;
  }
  const int64_t most = std::max<int64_t>(1, kPieceWeights / rows.size(1));
  torch::Tensor piece = torch::empty({std::min(most, rows.size(0)), rows.size(1)}, torch::kFloat32);
  for (int64_t begin = 0; begin < rows.size(0); begin += most) {
    torch::Tensor some = piece.narrow(0, 0, std::min(most, rows.size(0) - begin));
    made.make(first + begin, some);
    rows.narrow(0, begin, some.size(0)).copy_(some);
  }
  return values;
}

}  // namespace

torch::Tensor made_weight(at::IntArrayRef sizes, torch::Device device, MakeRows make) {
  const auto options = torch::TensorOptions().device(device).dtype(torch::kFloat32);
  auto* made =
      new Made{torch::full({1}, std::numeric_limits<float>::quiet_NaN(), options), std::move(make)};
  c10::DataPtr data(made->nan.data_ptr(), made, &Made::destroy, made->nan.device());
  const c10::Storage storage(c10::Storage::use_byte_size_t(), sizeof(float), std::move(data));
  const std::vector<int64_t> strides(sizes.size(), 0);
  return torch::empty({0}, options).set_(storage, 0, sizes, strides);
}

bool is_made(const torch::Tensor& weight) { return made_of(weight) != nullptr; }

torch::Tensor values_of(const torch::Tensor& weight, torch::Dtype dtype) {
  const Made* made = made_of(weight);
  return made ? made_rows(*made, 0, weight.sizes(), dtype) : weight.to(dtype);
}

torch::Tensor matrix_of(const torch::Tensor& stack, int64_t index, torch::Dtype dtype) {
  const Made* made = made_of(stack);
  if (!made) return stack.select(0, index).to(dtype);
  return made_rows(*made, index * stack.size(1), stack.sizes().slice(1), dtype);
}

torch::Tensor rows_of(const torch::Tensor& weight, const torch::Tensor& rows) {
  const Made* made = made_of(weight);
  if (!made) return weight.index_select(0, rows);
  const torch::NoGradGuard no_grad;
  const torch::Tensor wanted = rows.cpu();
  const torch::Tensor values = torch::empty({wanted.numel(), weight.size(1)}, torch::kFloat32);
  for (int64_t i = 0; i < wanted.numel(); ++i) {
    torch::Tensor row = values.narrow(0, i, 1);
    made->make(wanted.const_data_ptr<int64_t>()[i], row);
  }
  return values.to(weight.device());
}

}  // namespace nibble
