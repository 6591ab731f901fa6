#include "quant/fake/scale_refit.h"

#include <utility>
#include <vector>

#include "base/error.h"
#include "quant/fake/on_grid.h"

namespace nibble {
namespace {

using torch::Tensor;

// Neighbouring blocks' scales depend on each other little: the fourth sweep gains next to nothing.
constexpr int kSweeps = 4;

/// Neighbouring weights of a block that share a step, and an offset where the format has one.
struct Unit {
  int64_t first, count;  // weights, from the block's beginning
  int64_t step, offset;  // which of the block's scales; offset -1: none
};

/// The order of a format's scales (quant/format/registry.h), from their number.
class Layout {
 public:
  explicit Layout(const Format& format) : size_(format.block_size), group_size_(format.group_size) {
    const int64_t groups = size_ / group_size_, scales = format.num_scales;
    const bool alone = groups == 1;
    has_sub_scales_ = !alone && (scales == 1 + groups || scales == 2 + 2 * groups);
    has_offset_ = alone ? scales == 2 : scales == 2 + 2 * groups;
    check(has_sub_scales_ || scales == groups * (has_offset_ ? 2 : 1), "unknown order of the ",
          scales, " scales of ", format.name);
    first_sub_ = has_offset_ ? 2 : 1;
    for (int64_t j = 0; j < groups; ++j) {
      const int64_t step = has_sub_scales_ ? first_sub_ + j : j;
      const int64_t offset = !has_offset_ ? -1 : alone ? 1 : first_sub_ + groups + j;
      units_.push_back({j * group_size_, group_size_, step, offset});
    }
    if (has_sub_scales_) units_.push_back({0, size_, 0, has_offset_ ? 1 : -1});
  }

  const std::vector<Unit>& units() const { return units_; }

  // scales: of a block in each row, [rows, num_scales]; codes: of the unit's weights, [rows,
  // count].

  /// What the unit's step adds to its weights, per unit of it: [rows, count].
  Tensor step_slopes(const Unit& unit, const Tensor& codes, const Tensor& scales) const {
    if (!has_sub_scales_) return codes;
    return codes * (is_block(unit) ? per_weight(scales, first_sub_) : scales.slice(1, 0, 1));
  }
  Tensor offset_slopes(const Unit& unit, const Tensor& codes, const Tensor& scales) const {
    if (!has_sub_scales_) return at::ones_like(codes);
    return is_block(unit) ? -per_weight(scales, first_sub_ + num_groups())
                          : (-scales.slice(1, 1, 2)).expand_as(codes);
  }
  /// What codes [rows, block_size] decode to.
  Tensor values(const Tensor& codes, const Tensor& scales) const {
    if (!has_sub_scales_) {
      const Tensor steps = scales.slice(1, 0, num_groups()).repeat_interleave(group_size_, 1);
      return has_offset_ ? codes * steps + scales.slice(1, 1, 2) : codes * steps;
    }
    const Tensor steps = scales.slice(1, 0, 1) * per_weight(scales, first_sub_);
    if (!has_offset_) return codes * steps;
    return codes * steps - scales.slice(1, 1, 2) * per_weight(scales, first_sub_ + num_groups());
  }

 private:
  int64_t num_groups() const { return size_ / group_size_; }
  bool is_block(const Unit& unit) const { return unit.count == size_; }
  /// Scales first, first + 1, ... of the groups, each as often as its group has weights.
  Tensor per_weight(const Tensor& scales, int64_t first) const {
    return scales.slice(1, first, first + num_groups()).repeat_interleave(group_size_, 1);
  }

  int64_t size_, group_size_, first_sub_ = 0;
  bool has_sub_scales_ = false, has_offset_ = false;
  std::vector<Unit> units_;
};

/// A change of a unit's step and offset in each row, and by how much it lowers the error. [rows]
struct Move {
  Tensor step, offset, gain;
};

/// Rows' moves with those of `other` where they gain more.
Move better_of(const Move& move, const Move& other) {
  const Tensor other_wins = other.gain > move.gain;
  return {at::where(other_wins, other.step, move.step),
          at::where(other_wins, other.offset, move.offset),
          at::where(other_wins, other.gain, move.gain)};
}

/// 0 where a quotient is none.
Tensor quotient(const Tensor& a, const Tensor& b) { return at::nan_to_num(a / b, 0.0, 0.0, 0.0); }

/// The same block of all rows.
class BlockRefit {
 public:
  /// codes, gradient: [rows, block_size]; gradient: of (w - w^) H; scales: [rows, num_scales];
  /// hessian: the block's own part, [block_size, block_size].
  BlockRefit(const Format& format, const Layout& layout, Tensor codes, Tensor scales,
             Tensor gradient, Tensor hessian)
      : format_(format),
        layout_(layout),
        codes_(std::move(codes)),
        scales_(std::move(scales)),
        gradient_(std::move(gradient)),
        hessian_(std::move(hessian)),
        change_(at::zeros_like(codes_)) {}

  void refit() {
    for (const Unit& unit : layout_.units()) refit(unit);
  }
  const Tensor& scales() const { return scales_; }
  /// Of w^, [rows, block_size].
  const Tensor& change() const { return change_; }

 private:
  static Tensor columns(const Tensor& tensor, const Unit& unit) {
    return tensor.slice(1, unit.first, unit.first + unit.count);
  }
  static Tensor dot(const Tensor& a, const Tensor& b) { return (a * b).sum(1); }

  /// By how much the nearest scale that a block can store to (what there is + wanted) differs.
  Tensor storable(int64_t scale, const Tensor& wanted) const {
    const Tensor there = scales_.select(1, scale);
    Tensor all = scales_.clone(), snapped = at::empty_like(all);
    all.select(1, scale).add_(wanted);
    format_.snap(all.const_data_ptr<float>(), snapped.mutable_data_ptr<float>(), all.size(0));
    return snapped.select(1, scale) - there;
  }

  void refit(const Unit& unit) {
    const Tensor codes = columns(codes_, unit), gradient = columns(gradient_, unit);
    const Tensor hessian = columns(hessian_, unit).slice(0, unit.first, unit.first + unit.count);
    const Tensor a = layout_.step_slopes(unit, codes, scales_);
    const Tensor aa = dot(at::mm(a, hessian), a), ra = dot(a, gradient);
    const Tensor zero = at::zeros_like(ra);
    const Tensor alone = storable(unit.step, quotient(ra, aa));
    Move move = {alone, zero, alone * (2 * ra - aa * alone)};
    Tensor b;
    if (unit.offset >= 0) {
      b = layout_.offset_slopes(unit, codes, scales_);
      const Tensor bh = at::mm(b, hessian);
      const Tensor ab = dot(bh, a), bb = dot(bh, b), rb = dot(b, gradient);
      const auto with_step = [&](const Tensor& step) -> Move {
        const Tensor offset = storable(unit.offset, quotient(rb - ab * step, bb));
        return {step, offset,
                step * (2 * ra - aa * step - 2 * ab * offset) + offset * (2 * rb - bb * offset)};
      };
      const Tensor together = quotient(ra * bb - rb * ab, aa * bb - ab * ab);
      move = better_of(better_of(move, with_step(zero)), with_step(storable(unit.step, together)));
    }
    take(unit, move, a, b);
  }

  void take(const Unit& unit, const Move& move, const Tensor& a, const Tensor& b) {
    const Tensor gains = move.gain > 0;
    const Tensor step = at::where(gains, move.step, 0.0f);
    scales_.select(1, unit.step).add_(step);
    Tensor moved = step.unsqueeze(1) * a;
    if (unit.offset >= 0) {
      const Tensor offset = at::where(gains, move.offset, 0.0f);
      scales_.select(1, unit.offset).add_(offset);
      moved = moved + offset.unsqueeze(1) * b;
    }
    columns(change_, unit).add_(moved);
    gradient_.addmm_(moved, hessian_.slice(0, unit.first, unit.first + unit.count), 1, -1);
  }

  const Format& format_;
  const Layout& layout_;
  Tensor codes_, scales_, gradient_, hessian_, change_;
};

/// The q's of what is on the grid, [rows, in] float32.
Tensor codes_of(const Format& format, const OnGrid& on_grid) {
  const std::vector<std::byte> blocks = encoded(format, on_grid.rounded, on_grid.scales);
  Tensor codes = torch::empty(on_grid.rounded.sizes(), torch::kInt8);
  format.codes_of(blocks.data(), codes.mutable_data_ptr<int8_t>(),
                  codes.numel() / format.block_size);
  return codes.to(torch::kFloat32);
}

/// One pass over the blocks from left to right; moves `scales`.
void sweep(const Format& format, const Layout& layout, const Tensor& residual,
           const Tensor& hessian, const Tensor& codes, Tensor& scales) {
  Tensor gradient = at::mm(residual, hessian);
  const int64_t width = codes.size(1), size = format.block_size, count = format.num_scales;
  for (int64_t block = 0; block < width / size; ++block) {
    const int64_t begin = block * size, end = begin + size;
    const Tensor rows = hessian.slice(0, begin, end);
    Tensor its_scales = scales.slice(1, block * count, (block + 1) * count);
    BlockRefit refit(format, layout, codes.slice(1, begin, end), its_scales.contiguous(),
                     gradient.slice(1, begin, end).contiguous(), rows.slice(1, begin, end));
    refit.refit();
    its_scales.copy_(refit.scales());
    if (end < width) gradient.slice(1, end).addmm_(refit.change(), rows.slice(1, end), 1, -1);
  }
}

}  // namespace

OnGrid refit_scales(const Format& format, const Tensor& weights, const Tensor& hessian,
                    const OnGrid& start) {
  const torch::NoGradGuard no_grad;
  const Layout layout(format);
  const int64_t blocks = weights.numel() / format.block_size;
  const Tensor codes = codes_of(format, start);
  Tensor scales = start.scales.clone();
  const auto values = [&] {
    return layout
        .values(codes.view({blocks, format.block_size}), scales.view({blocks, format.num_scales}))
        .view_as(weights);
  };
  for (int i = 0; i < kSweeps; ++i)
    sweep(format, layout, weights - values(), hessian, codes, scales);
  format.snap(scales.clone().const_data_ptr<float>(), scales.mutable_data_ptr<float>(), blocks);
  // What ships decides, not the sums above.
  const Tensor rounded = fake_quantized(format, values(), scales);
  const Tensor gains =
      (row_errors(weights, rounded, hessian) < row_errors(weights, start.rounded, hessian))
          .unsqueeze(1);
  return {at::where(gains, scales, start.scales), at::where(gains, rounded, start.rounded)};
}

}  // namespace nibble
