#include "model/kernels.h"

#include <cmath>
#include <mutex>
#include <vector>

#include "base/threads.h"
#include "model/vector.h"

namespace nibble {
namespace {

constexpr int64_t kRowGrain = 16;
constexpr int64_t kElementGrain = 1 << 14;

NIBBLE_CLONES void rms_norm_rows(const float* x, const float* weight, float epsilon, int64_t rows,
                                 int64_t width, float* y, float* inverse_rms) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    Lanes sums{}, v, w;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      load_lanes(v, x + i);
      sums += v * v;
    }
    load_some(v, x + i, width - i, 0.0f);
    sums += v * v;
    const float scale = 1.0f / std::sqrt(sum_lanes(sums) / width + epsilon);
    inverse_rms[row] = scale;
    for (i = 0; i + kLanes <= width; i += kLanes) {
      load_lanes(v, x + i);
      load_lanes(w, weight + i);
      store_lanes(y + i, v * scale * w);
    }
    for (; i < width; ++i) y[i] = x[i] * scale * weight[i];
  }
}

// With n = x * inverse_rms and g = grad_y * weight: grad_x = inverse_rms * (g - n * mean(g * n)),
// grad_weight = sum over rows of grad_y * n.
NIBBLE_CLONES void rms_norm_backward_rows(const float* x, const float* weight,
                                          const float* inverse_rms, const float* grad_y,
                                          int64_t rows, int64_t width, float* grad_x,
                                          float* grad_weight) {
  for (int64_t row = 0; row < rows; ++row, x += width, grad_y += width, grad_x += width) {
    const float scale = inverse_rms[row];
    Lanes sums{}, v, w, g, out;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      load_lanes(v, x + i);
      load_lanes(w, weight + i);
      load_lanes(g, grad_y + i);
      const Lanes product = g * (v * scale);
      sums += product * w;
      load_lanes(out, grad_weight + i);
      store_lanes(grad_weight + i, out + product);
    }
    float dot = sum_lanes(sums);
    for (int64_t j = i; j < width; ++j) {
      const float product = grad_y[j] * (x[j] * scale);
      dot += product * weight[j];
      grad_weight[j] += product;
    }
    const float mean = dot / width * scale;
    for (i = 0; i + kLanes <= width; i += kLanes) {
      load_lanes(v, x + i);
      load_lanes(w, weight + i);
      load_lanes(g, grad_y + i);
      store_lanes(grad_x + i, (g * w - v * mean) * scale);
    }
    for (; i < width; ++i) grad_x[i] = (grad_y[i] * weight[i] - x[i] * mean) * scale;
  }
}

NIBBLE_INLINE void sigmoid_lanes(Lanes& x) {
  x = -x;
  x = x > 88.0f ? Lanes{} + 88.0f : x;
  exp_lanes(x);
  x = 1.0f / (1.0f + x);
}

NIBBLE_INLINE void swiglu_lanes(const Lanes& gate, const Lanes& up, Lanes& y) {
  Lanes sigmoid = gate;
  sigmoid_lanes(sigmoid);
  y = gate * sigmoid * up;
}

NIBBLE_INLINE void swiglu_grad_lanes(const Lanes& gate, const Lanes& up, const Lanes& grad_y,
                                     Lanes& grad_gate, Lanes& grad_up) {
  Lanes sigmoid = gate;
  sigmoid_lanes(sigmoid);
  grad_up = grad_y * gate * sigmoid;
  grad_gate = grad_y * up * sigmoid * (1.0f + gate * (1.0f - sigmoid));
}

NIBBLE_CLONES void swiglu_piece(const float* gate, const float* up, int64_t count, float* y) {
  Lanes g, u, out;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load_lanes(g, gate + i);
    load_lanes(u, up + i);
    swiglu_lanes(g, u, out);
    store_lanes(y + i, out);
  }
  load_some(g, gate + i, count - i, 0.0f);
  load_some(u, up + i, count - i, 0.0f);
  swiglu_lanes(g, u, out);
  store_some(y + i, out, count - i);
}

NIBBLE_CLONES void swiglu_backward_piece(const float* gate, const float* up, const float* grad_y,
                                         int64_t count, float* grad_gate, float* grad_up) {
  Lanes g, u, dy, dg, du;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load_lanes(g, gate + i);
    load_lanes(u, up + i);
    load_lanes(dy, grad_y + i);
    swiglu_grad_lanes(g, u, dy, dg, du);
    store_lanes(grad_gate + i, dg);
    store_lanes(grad_up + i, du);
  }
  load_some(g, gate + i, count - i, 0.0f);
  load_some(u, up + i, count - i, 0.0f);
  load_some(dy, grad_y + i, count - i, 0.0f);
  swiglu_grad_lanes(g, u, dy, dg, du);
  store_some(grad_gate + i, dg, count - i);
  store_some(grad_up + i, du, count - i);
}

}  // namespace

void rms_norm_forward(const float* x, const float* weight, float epsilon, int64_t rows,
                      int64_t width, float* y, float* inverse_rms) {
  parallel_for(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    rms_norm_rows(x + begin * width, weight, epsilon, end - begin, width, y + begin * width,
                  inverse_rms + begin);
  });
}

void rms_norm_backward(const float* x, const float* weight, const float* inverse_rms,
                       const float* grad_y, int64_t rows, int64_t width, float* grad_x,
                       float* grad_weight) {
  // One partial sum per fixed piece of rows, added in order: the result does not depend on the
  // threads.
  const int64_t piece_rows = 128, pieces = (rows + piece_rows - 1) / piece_rows;
  std::vector<float> partial(pieces * width, 0.0f);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece * piece_rows;
      rms_norm_backward_rows(x + row * width, weight, inverse_rms + row, grad_y + row * width,
                             std::min(piece_rows, rows - row), width, grad_x + row * width,
                             partial.data() + piece * width);
    }
  });
  if (!grad_weight) return;
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = 0; i < width; ++i) grad_weight[i] += partial[piece * width + i];
}

void swiglu_forward(const float* gate, const float* up, int64_t count, float* y) {
  parallel_for(count, kElementGrain, [&](int64_t begin, int64_t end) {
    swiglu_piece(gate + begin, up + begin, end - begin, y + begin);
  });
}

void swiglu_backward(const float* gate, const float* up, const float* grad_y, int64_t count,
                     float* grad_gate, float* grad_up) {
  parallel_for(count, kElementGrain, [&](int64_t begin, int64_t end) {
    swiglu_backward_piece(gate + begin, up + begin, grad_y + begin, end - begin, grad_gate + begin,
                          grad_up + begin);
  });
}

}  // namespace nibble
