// Batch normalisation (batch_norm.py) and max pooling (max_pool.py) of images in channels-last order, in training.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

struct BFloat16 { uint16_t bits; };

inline float load(BFloat16 v) {
  const uint32_t u = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline float load(float v) { return v; }

// To the nearest, ties to even; what is no number stays none.
inline void store(BFloat16& to, float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline void store(float& to, float f) { to = f; }

constexpr int64_t BLOCK = 64;  // rows that are added in fp32 before they are added to a double

// Calls add(row, a, b) for every row; a and b [channels] are sums in fp32, which go to out [2, channels]. Each thread has
// the same rows at every call, and threads are added in their order, so that equal rows give equal bits.
template <typename Add>
void reduce(int64_t rows, int64_t channels, double* out, Add add) {
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK, width = 2 * channels;
  const int threads = omp_get_max_threads();
  std::vector<double> all(threads * width);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> part(width);
    double* mine = all.data() + omp_get_thread_num() * width;
    float* a = part.data();
    float* b = a + channels;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = block * BLOCK, last = first + BLOCK < rows ? first + BLOCK : rows;
      std::memset(a, 0, width * sizeof(float));
      for (int64_t row = first; row < last; row++) add(row, a, b);
      for (int64_t c = 0; c < width; c++) mine[c] += a[c];
    }
  }
  std::memset(out, 0, width * sizeof(double));
  for (int thread = 0; thread < threads; thread++)
    for (int64_t c = 0; c < width; c++) out[c] += all[thread * width + c];
}

template <typename T>
void sums(const T* __restrict x, const float* __restrict shift, double* out, int64_t rows, int64_t channels) {
  reduce(rows, channels, out, [=](int64_t row, float* __restrict a, float* __restrict b) {
    const T* __restrict p = x + row * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      const float v = load(p[c]) - shift[c];
      a[c] += v;
      b[c] += v * v;
    }
  });
}

template <bool OTHER, bool RECTIFY, typename T>
void apply(const T* x, const T* other, T* y, const float* scale, const float* offset, int64_t rows, int64_t channels) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const T* __restrict p = x + row * channels;
    const T* __restrict o = OTHER ? other + row * channels : nullptr;
    T* __restrict q = y + row * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      float v = load(p[c]) * scale[c] + offset[c];
      if (OTHER) v += load(o[c]);
      if (RECTIFY) v = v < 0.0f ? 0.0f : v;
      store(q[c], v);
    }
  }
}

// What says which values a ReLU let through: nothing (there is none), its result, or what it was computed from.
enum Source { NONE, RESULT, IMAGES };

// What a normalisation is for each channel: x * scale + offset.
struct Line {
  const float* scale;
  const float* offset;
};

template <Source SOURCE, typename T>
void gradient_sums(const T* g, const T* y, const T* x, Line line, const float* __restrict mean, double* out,
                   int64_t rows, int64_t channels) {
  reduce(rows, channels, out, [=](int64_t row, float* __restrict a, float* __restrict b) {
    const T* __restrict p = x + row * channels;
    const T* __restrict q = g + row * channels;
    const T* __restrict m = SOURCE == RESULT ? y + row * channels : nullptr;
    const float* __restrict s = line.scale;
    const float* __restrict o = line.offset;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      const float v = load(p[c]);
      float d = load(q[c]);
      if (SOURCE == RESULT) d = load(m[c]) > 0.0f ? d : 0.0f;
      if (SOURCE == IMAGES) d = v * s[c] + o[c] > 0.0f ? d : 0.0f;
      a[c] += d;
      b[c] += d * (v - mean[c]);
    }
  });
}

template <Source SOURCE, bool MASKED, typename T>
void gradient(const T* g, const T* y, const T* x, T* dx, T* masked, Line line, const float* mean, const float* slope,
              const float* level, int64_t rows, int64_t channels) {
  const float* scale = line.scale;
  const float* offset = line.offset;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const T* __restrict p = x + row * channels;
    const T* __restrict q = g + row * channels;
    const T* __restrict m = SOURCE == RESULT ? y + row * channels : nullptr;
    T* __restrict out = dx + row * channels;
    T* __restrict o = MASKED ? masked + row * channels : nullptr;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      const float v = load(p[c]);
      float d = load(q[c]);
      if (SOURCE == RESULT) d = load(m[c]) > 0.0f ? d : 0.0f;
      if (SOURCE == IMAGES) d = v * scale[c] + offset[c] > 0.0f ? d : 0.0f;
      if (MASKED) store(o[c], d);
      store(out[c], d * scale[c] + (v - mean[c]) * slope[c] + level[c]);
    }
  }
}

// Rows of few channels are taken together, so that loops over channels are long: [rows, channels] -> [rows / n, n * channels].
int64_t together(int64_t rows, int64_t channels) {
  int64_t n = 1;
  while (n * channels < 256 && rows % (2 * n) == 0) n *= 2;
  return n;
}

template <typename V>
std::vector<float> repeated(const V* values, int64_t channels, int64_t n) {
  std::vector<float> out;
  for (int64_t i = 0; i < n; i++) out.insert(out.end(), values, values + channels);
  return out;
}

// The sums of `n` rows that were taken together: [n * channels] -> [channels].
std::vector<double> folded(const double* sums, int64_t channels, int64_t n) {
  std::vector<double> out(channels);
  for (int64_t i = 0; i < n * channels; i++) out[i % channels] += sums[i];
  return out;
}

// The lines of all channels: [2, channels], scales before offsets. From what both directions have, so that they agree on
// which values are above zero.
std::vector<double> lines(const float* mean, const float* inverse, const float* weight, const float* bias, int64_t channels) {
  std::vector<double> out(2 * channels);
  for (int64_t c = 0; c < channels; c++) {
    out[c] = weight ? static_cast<double>(inverse[c]) * weight[c] : inverse[c];
    out[channels + c] = (bias ? bias[c] : 0) - mean[c] * out[c];
  }
  return out;
}

template <typename T>
void forward(const T* x, const T* other, T* y, const float* weight, const float* bias, double eps, float* mean_out,
             float* inverse_out, float* running_mean, float* running_variance, double share, int64_t rows,
             int64_t channels, int64_t rectify) {
  const int64_t n = together(rows, channels), R = rows / n, C = n * channels;
  // Sums about a value that occurs, so that squares of a large mean do not swallow the variance.
  std::vector<double> shift(channels), both(2 * C);
  for (int64_t c = 0; c < channels; c++) shift[c] = load(x[c]);
  sums(x, repeated(shift.data(), channels, n).data(), both.data(), R, C);
  const auto first = folded(both.data(), channels, n), second = folded(both.data() + C, channels, n);
  for (int64_t c = 0; c < channels; c++) {
    const double about = first[c] / rows, mean = about + shift[c];
    double variance = second[c] / rows - about * about;
    if (variance < 0) variance = 0;
    mean_out[c] = mean;
    inverse_out[c] = 1 / std::sqrt(variance + eps);
    if (running_mean) {
      running_mean[c] += share * (mean - running_mean[c]);
      running_variance[c] += share * (variance * rows / (rows - 1) - running_variance[c]);
    }
  }
  const auto line = lines(mean_out, inverse_out, weight, bias, channels);
  const auto scales = repeated(line.data(), channels, n), offsets = repeated(line.data() + channels, channels, n);
  if (other && rectify) apply<true, true>(x, other, y, scales.data(), offsets.data(), R, C);
  else if (other) apply<true, false>(x, other, y, scales.data(), offsets.data(), R, C);
  else if (rectify) apply<false, true>(x, other, y, scales.data(), offsets.data(), R, C);
  else apply<false, false>(x, other, y, scales.data(), offsets.data(), R, C);
}

// `y` is what was rectified, or null; `masked` is where the gradient of what was rectified goes, or null.
template <typename T>
void backward(const T* g, const T* y, const T* x, T* dx, T* masked, const float* weight, const float* bias,
              const float* mean, const float* inverse, float* of_weight, float* of_bias, int64_t rows, int64_t channels,
              int64_t rectify) {
  const int64_t n = together(rows, channels), R = rows / n, C = n * channels;
  std::vector<double> both(2 * C), slope(channels), level(channels);
  const auto line = lines(mean, inverse, weight, bias, channels);
  const auto scales = repeated(line.data(), channels, n), offsets = repeated(line.data() + channels, channels, n);
  const auto means = repeated(mean, channels, n);
  const Line all{scales.data(), offsets.data()};
  const float* m = means.data();
  if (y) gradient_sums<RESULT>(g, y, x, all, m, both.data(), R, C);
  else if (rectify) gradient_sums<IMAGES>(g, y, x, all, m, both.data(), R, C);
  else gradient_sums<NONE>(g, y, x, all, m, both.data(), R, C);
  const auto sum = folded(both.data(), channels, n), product = folded(both.data() + C, channels, n);
  for (int64_t c = 0; c < channels; c++) {
    const double v = inverse[c];
    slope[c] = -line[c] * v * v * product[c] / rows;
    level[c] = -line[c] * sum[c] / rows;
    if (of_weight) of_weight[c] = product[c] * v;
    if (of_bias) of_bias[c] = sum[c];
  }
  const auto slopes = repeated(slope.data(), channels, n), levels = repeated(level.data(), channels, n);
  const float *l = slopes.data(), *k = levels.data();
  if (masked) gradient<RESULT, true>(g, y, x, dx, masked, all, m, l, k, R, C);
  else if (y) gradient<RESULT, false>(g, y, x, dx, masked, all, m, l, k, R, C);
  else if (rectify) gradient<IMAGES, false>(g, y, x, dx, masked, all, m, l, k, R, C);
  else gradient<NONE, false>(g, y, x, dx, masked, all, m, l, k, R, C);
}

// A window of max pooling, the same in both directions.
struct Window {
  int64_t height, width, rows, columns, kernel, stride, padding;  // of the images, of the result; pixels
};

constexpr int64_t LANES = 64;  // channels that are held in registers

// y [batch, rows, columns, channels]; tap: which pixel of its window each value is, the first of equal ones.
template <typename T>
void pool(const T* x, T* y, uint8_t* tap, int64_t batch, int64_t channels, Window w) {
#pragma omp parallel for schedule(static)
  for (int64_t line = 0; line < batch * w.rows; line++) {
    const int64_t top = line % w.rows * w.stride - w.padding;
    const T* image = x + line / w.rows * w.height * w.width * channels;
    for (int64_t column = 0; column < w.columns; column++) {
      const int64_t left = column * w.stride - w.padding, place = (line * w.columns + column) * channels;
      for (int64_t first = 0; first < channels; first += LANES) {
        const int64_t lanes = channels - first < LANES ? channels - first : LANES;
        float best[LANES];
        int32_t which[LANES];
        const int64_t above = top < 0 ? -top : 0, before = left < 0 ? -left : 0;
        for (int64_t c = 0; c < LANES; c++) best[c] = -INFINITY, which[c] = above * w.kernel + before;
        for (int64_t i = 0; i < w.kernel; i++) {
          if (top + i < 0 || top + i >= w.height) continue;
          for (int64_t j = 0; j < w.kernel; j++) {
            if (left + j < 0 || left + j >= w.width) continue;
            const T* __restrict p = image + ((top + i) * w.width + left + j) * channels + first;
            const int32_t t = i * w.kernel + j;
            const auto look = [&](int64_t c) {
              const float v = load(p[c]);
              const bool better = v > best[c] || v != v;
              best[c] = better ? v : best[c];
              which[c] = better ? t : which[c];
            };
            if (lanes == LANES) {
#pragma omp simd
              for (int64_t c = 0; c < LANES; c++) look(c);
            } else {
              for (int64_t c = 0; c < lanes; c++) look(c);
            }
          }
        }
        for (int64_t c = 0; c < lanes; c++) {
          store(y[place + first + c], best[c]);
          tap[place + first + c] = which[c];
        }
      }
    }
  }
}

// dx: each pixel of the images collects the gradients of the windows that took it, so that it is written once.
template <typename T>
void pool_gradient(const T* g, const uint8_t* tap, T* dx, int64_t batch, int64_t channels, Window w) {
#pragma omp parallel for schedule(static)
  for (int64_t line = 0; line < batch * w.height; line++) {
    const int64_t image = line / w.height, y = line % w.height + w.padding;
    const int64_t low = y < w.kernel ? 0 : (y - w.kernel) / w.stride + 1;
    const int64_t high = y / w.stride < w.rows - 1 ? y / w.stride : w.rows - 1;
    for (int64_t column = 0; column < w.width; column++) {
      const int64_t x = column + w.padding;
      const int64_t left = x < w.kernel ? 0 : (x - w.kernel) / w.stride + 1;
      const int64_t right = x / w.stride < w.columns - 1 ? x / w.stride : w.columns - 1;
      T* __restrict out = dx + (line * w.width + column) * channels;
      for (int64_t first = 0; first < channels; first += LANES) {
        const int64_t lanes = channels - first < LANES ? channels - first : LANES;
        float sum[LANES];
        for (int64_t c = 0; c < LANES; c++) sum[c] = 0.0f;
        for (int64_t row = low; row <= high; row++)
          for (int64_t other = left; other <= right; other++) {
            const int64_t place = ((image * w.rows + row) * w.columns + other) * channels + first;
            const T* __restrict p = g + place;
            const uint8_t* __restrict q = tap + place;
            const int32_t t = (y - row * w.stride) * w.kernel + x - other * w.stride;
            if (lanes == LANES) {
#pragma omp simd
              for (int64_t c = 0; c < LANES; c++) sum[c] += q[c] == t ? load(p[c]) : 0.0f;
            } else {
              for (int64_t c = 0; c < lanes; c++) sum[c] += q[c] == t ? load(p[c]) : 0.0f;
            }
          }
        for (int64_t c = 0; c < lanes; c++) store(out[first + c], sum[c]);
      }
    }
  }
}

}  // namespace

#define EXPORT(T, NAME)                                                                                              \
  extern "C" void forward_##NAME(const T* x, const T* other, T* y, const float* weight, const float* bias,           \
                                 float* mean, float* inverse, float* running_mean, float* running_variance,          \
                                 double eps, double share, int64_t rows, int64_t channels, int64_t rectify) {        \
    forward(x, other, y, weight, bias, eps, mean, inverse, running_mean, running_variance, share, rows, channels,    \
            rectify);                                                                                                \
  }                                                                                                                  \
  extern "C" void backward_##NAME(const T* g, const T* y, const T* x, T* dx, T* masked, const float* weight,         \
                                  const float* bias, const float* mean, const float* inverse, float* of_weight,      \
                                  float* of_bias, int64_t rows, int64_t channels, int64_t rectify) {                 \
    backward(g, y, x, dx, masked, weight, bias, mean, inverse, of_weight, of_bias, rows, channels, rectify);         \
  }                                                                                                                  \
  extern "C" void pool_##NAME(const T* x, T* y, uint8_t* tap, int64_t batch, int64_t channels, int64_t height,       \
                              int64_t width, int64_t rows, int64_t columns, int64_t kernel, int64_t stride,          \
                              int64_t padding) {                                                                     \
    pool(x, y, tap, batch, channels, {height, width, rows, columns, kernel, stride, padding});                       \
  }                                                                                                                  \
  extern "C" void pool_gradient_##NAME(const T* g, const uint8_t* tap, T* dx, int64_t batch, int64_t channels,       \
                                       int64_t height, int64_t width, int64_t rows, int64_t columns, int64_t kernel, \
                                       int64_t stride, int64_t padding) {                                            \
    pool_gradient(g, tap, dx, batch, channels, {height, width, rows, columns, kernel, stride, padding});             \
  }

EXPORT(BFloat16, bf16)
EXPORT(float, fp32)
