// Batch normalisation of images in channels-last order, in training: see batch_norm.py.

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

template <bool RECTIFY, typename T>
void gradient_sums(const T* g, const T* y, const T* x, const float* __restrict mean, double* out, int64_t rows, int64_t channels) {
  reduce(rows, channels, out, [=](int64_t row, float* __restrict a, float* __restrict b) {
    const T* __restrict p = x + row * channels;
    const T* __restrict q = g + row * channels;
    const T* __restrict m = RECTIFY ? y + row * channels : nullptr;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      float d = load(q[c]);
      if (RECTIFY) d = load(m[c]) > 0.0f ? d : 0.0f;
      a[c] += d;
      b[c] += d * (load(p[c]) - mean[c]);
    }
  });
}

template <bool RECTIFY, bool MASKED, typename T>
void gradient(const T* g, const T* y, const T* x, T* dx, T* masked, const float* mean, const float* scale,
              const float* slope, const float* level, int64_t rows, int64_t channels) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const T* __restrict p = x + row * channels;
    const T* __restrict q = g + row * channels;
    const T* __restrict m = RECTIFY ? y + row * channels : nullptr;
    T* __restrict out = dx + row * channels;
    T* __restrict o = MASKED ? masked + row * channels : nullptr;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      float d = load(q[c]);
      if (RECTIFY) d = load(m[c]) > 0.0f ? d : 0.0f;
      if (MASKED) store(o[c], d);
      store(out[c], d * scale[c] + (load(p[c]) - mean[c]) * slope[c] + level[c]);
    }
  }
}

// Rows of few channels are taken together, so that loops over channels are long: [rows, channels] -> [rows / n, n * channels].
int64_t together(int64_t rows, int64_t channels) {
  int64_t n = 1;
  while (n * channels < 256 && rows % (2 * n) == 0) n *= 2;
  return n;
}

std::vector<float> repeated(const std::vector<double>& values, int64_t n) {
  std::vector<float> out;
  for (int64_t i = 0; i < n; i++) out.insert(out.end(), values.begin(), values.end());
  return out;
}

// The sums of `n` rows that were taken together: [n * channels] -> [channels].
std::vector<double> folded(const double* sums, int64_t channels, int64_t n) {
  std::vector<double> out(channels);
  for (int64_t i = 0; i < n * channels; i++) out[i % channels] += sums[i];
  return out;
}

template <typename T>
void forward(const T* x, const T* other, T* y, const float* weight, const float* bias, double eps, float* mean_out,
             float* inverse_out, float* running_mean, float* running_variance, double share, int64_t rows,
             int64_t channels, int64_t rectify) {
  const int64_t n = together(rows, channels), R = rows / n, C = n * channels;
  // Sums about a value that occurs, so that squares of a large mean do not swallow the variance.
  std::vector<double> shift(channels), scale(channels), offset(channels), both(2 * C);
  for (int64_t c = 0; c < channels; c++) shift[c] = load(x[c]);
  sums(x, repeated(shift, n).data(), both.data(), R, C);
  const auto first = folded(both.data(), channels, n), second = folded(both.data() + C, channels, n);
  for (int64_t c = 0; c < channels; c++) {
    const double about = first[c] / rows, mean = about + shift[c];
    double variance = second[c] / rows - about * about;
    if (variance < 0) variance = 0;
    const double inverse = 1 / std::sqrt(variance + eps);
    mean_out[c] = mean;
    inverse_out[c] = inverse;
    scale[c] = weight ? inverse * weight[c] : inverse;
    offset[c] = (bias ? bias[c] : 0) - mean * scale[c];
    if (running_mean) {
      running_mean[c] += share * (mean - running_mean[c]);
      running_variance[c] += share * (variance * rows / (rows - 1) - running_variance[c]);
    }
  }
  const auto scales = repeated(scale, n), offsets = repeated(offset, n);
  if (other && rectify) apply<true, true>(x, other, y, scales.data(), offsets.data(), R, C);
  else if (other) apply<true, false>(x, other, y, scales.data(), offsets.data(), R, C);
  else if (rectify) apply<false, true>(x, other, y, scales.data(), offsets.data(), R, C);
  else apply<false, false>(x, other, y, scales.data(), offsets.data(), R, C);
}

// `y` is what was rectified, or null; `masked` is where its gradient goes, or null.
template <typename T>
void backward(const T* g, const T* y, const T* x, T* dx, T* masked, const float* weight, const float* mean,
              const float* inverse, float* of_weight, float* of_bias, int64_t rows, int64_t channels) {
  const int64_t n = together(rows, channels), R = rows / n, C = n * channels;
  std::vector<double> both(2 * C), scale(channels), slope(channels), level(channels);
  const auto means = repeated(std::vector<double>(mean, mean + channels), n);
  if (y) gradient_sums<true>(g, y, x, means.data(), both.data(), R, C);
  else gradient_sums<false>(g, y, x, means.data(), both.data(), R, C);
  const auto sum = folded(both.data(), channels, n), product = folded(both.data() + C, channels, n);
  for (int64_t c = 0; c < channels; c++) {
    const double v = inverse[c];
    scale[c] = weight ? v * weight[c] : v;
    slope[c] = -scale[c] * v * v * product[c] / rows;
    level[c] = -scale[c] * sum[c] / rows;
    if (of_weight) of_weight[c] = product[c] * v;
    if (of_bias) of_bias[c] = sum[c];
  }
  const auto scales = repeated(scale, n), slopes = repeated(slope, n), levels = repeated(level, n);
  const float *m = means.data(), *s = scales.data(), *l = slopes.data(), *k = levels.data();
  if (masked) gradient<true, true>(g, y, x, dx, masked, m, s, l, k, R, C);
  else if (y) gradient<true, false>(g, y, x, dx, masked, m, s, l, k, R, C);
  else gradient<false, false>(g, y, x, dx, masked, m, s, l, k, R, C);
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
                                  const float* mean, const float* inverse, float* of_weight, float* of_bias,         \
                                  int64_t rows, int64_t channels) {                                                  \
    backward(g, y, x, dx, masked, weight, mean, inverse, of_weight, of_bias, rows, channels);                        \
  }

EXPORT(BFloat16, bf16)
EXPORT(float, fp32)
