/* The limits of one core that a recurrent loop is held to: how fast weights can be read, and an int8 loop by hand.

   read_gb_s  peak read bandwidth over a buffer of a given size: the floor under any loop whose weights lie there
   run        a whole LSTM or GRU with a linear head in AVX-512 VNNI, int8 weights with a scale a column, activations
              quantised at each step: what a compiler could at best make of the same recipe

   Compiled by runtimes.py: gcc -O3 -march=native -ffast-math -shared -fPIC. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

#if defined(__AVX512F__)
typedef __m512i wide;
#define LOAD(p) _mm512_loadu_si512(p)
#define OR(a, b) _mm512_or_si512(a, b)
#elif defined(__AVX2__)
typedef __m256i wide;
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define OR(a, b) _mm256_or_si256(a, b)
#else
typedef uint64_t wide;
#define LOAD(p) (*(const uint64_t *)(p))
#define OR(a, b) ((a) | (b))
#endif

/* The best of `trials` trials of `passes` passes each over `bytes` bytes, a multiple of eight registers. */
double read_gb_s(const char *buffer, long bytes, long passes, long trials) {
    double best = 0;
    for (long trial = 0; trial < trials; trial++) {
        wide sums[8];
        memset(sums, 0, sizeof sums);
        double started = now();
        for (long pass = 0; pass < passes; pass++) {
            for (const char *at = buffer; at < buffer + bytes; at += 8 * sizeof(wide))
                for (int lane = 0; lane < 8; lane++) sums[lane] = OR(sums[lane], LOAD(at + lane * sizeof(wide)));
            __asm__ volatile("" ::: "memory");
        }
        double spent = now() - started;
        volatile wide kept = sums[0];
        for (int lane = 1; lane < 8; lane++) kept = OR(kept, sums[lane]);
        if (bytes * (double)passes / spent > best) best = bytes * (double)passes / spent;
    }
    return best / 1e9;
}

#if defined(__AVX512VNNI__) && defined(__AVX512F__)

int has_vnni(void) { return 1; }

static inline __m512 exponential(__m512 x) { /* 2^n p(r), relative error under 3e-6 */
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87)), _mm512_set1_ps(87));
    __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(scaled, 0);
    __m512 r = _mm512_mul_ps(_mm512_sub_ps(scaled, whole), _mm512_set1_ps(0.69314718f));
    __m512 p = _mm512_set1_ps(1 / 120.f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1 / 24.f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1 / 6.f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, whole);
}

static inline __m512 sigmoid(__m512 x) {
    __m512 one = _mm512_set1_ps(1);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

static inline __m512 hyperbolic(__m512 x) {
    return _mm512_fmsub_ps(_mm512_set1_ps(2), sigmoid(_mm512_add_ps(x, x)), _mm512_set1_ps(1));
}

/* x [n] to bytes 128 + x / scale; gives the scale. n is a multiple of 16. */
static float quantise(const float *x, int n, uint8_t *out) {
    __m512 top = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    float largest = _mm512_reduce_max_ps(top);
    float scale = largest > 0 ? largest / 127 : 1;
    __m512 inverse = _mm512_set1_ps(1 / scale);
    for (int i = 0; i < n; i += 16) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
        _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128))));
    }
    return scale;
}

/* out [columns] = scale_in * scales * (q - 128) W + bias. W is packed [columns / 64][rows / 4][64][4]; sums = 128 * its
   column sums. Four registers of 16 columns, two chains each, so that the latency of vpdpbusd is hidden. */
static void product(const uint8_t *q, float scale_in, const int8_t *W, const int32_t *sums, const float *scales,
                    const float *bias, int rows, int columns, float *out) {
    for (int column = 0; column < columns; column += 64) {
        __m512i even[4], odd[4];
        for (int j = 0; j < 4; j++) {
            even[j] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(sums + column + 16 * j));
            odd[j] = _mm512_setzero_si512();
        }
        const int8_t *at = W + (long)column * rows;
        for (int row = 0; row < rows; row += 8, at += 512) {
            int32_t first, second;
            memcpy(&first, q + row, 4);
            memcpy(&second, q + row + 4, 4);
            __m512i a = _mm512_set1_epi32(first), b = _mm512_set1_epi32(second);
            for (int j = 0; j < 4; j++) {
                even[j] = _mm512_dpbusd_epi32(even[j], a, _mm512_loadu_si512(at + 64 * j));
                odd[j] = _mm512_dpbusd_epi32(odd[j], b, _mm512_loadu_si512(at + 256 + 64 * j));
            }
        }
        for (int j = 0; j < 4; j++) {
            __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(even[j], odd[j]));
            __m512 scale = _mm512_mul_ps(_mm512_set1_ps(scale_in), _mm512_loadu_ps(scales + column + 16 * j));
            __m512 sum = _mm512_fmadd_ps(whole, scale, _mm512_loadu_ps(bias + column + 16 * j));
            _mm512_storeu_ps(out + column + 16 * j, sum);
        }
    }
}

static void lstm_gates(const float *pre, const float *projected, float *h, float *c, int units) {
    for (int u = 0; u < units; u += 16) {
#define GATE(k) _mm512_add_ps(_mm512_loadu_ps(pre + (k) * units + u), _mm512_loadu_ps(projected + (k) * units + u))
        __m512 i = sigmoid(GATE(0)), f = sigmoid(GATE(1)), g = hyperbolic(GATE(2)), o = sigmoid(GATE(3));
        __m512 next = _mm512_fmadd_ps(f, _mm512_loadu_ps(c + u), _mm512_mul_ps(i, g));
        _mm512_storeu_ps(c + u, next);
        _mm512_storeu_ps(h + u, _mm512_mul_ps(o, hyperbolic(next)));
    }
}

static void gru_gates(const float *pre, const float *projected, float *h, int units) {
    for (int u = 0; u < units; u += 16) {
        __m512 z = sigmoid(GATE(0)), r = sigmoid(GATE(1)), was = _mm512_loadu_ps(h + u);
        __m512 held = _mm512_loadu_ps(pre + 2 * units + u), seen = _mm512_loadu_ps(projected + 2 * units + u);
        __m512 n = hyperbolic(_mm512_fmadd_ps(r, held, seen));
        _mm512_storeu_ps(h + u, _mm512_fmadd_ps(z, _mm512_sub_ps(was, n), n));
    }
}

/* x [time, features] -> y [outputs]. gates: 4 is an LSTM (i, f, g, o), 3 a GRU (z, r, n; reset after). Matrices packed
   as in `product`; head [outputs, units] floats; work: time * gates * units + (gates + 2) * units floats. */
void run(const float *x, int time, int features, int units, int gates, const int8_t *W, const int32_t *W_sums,
         const float *W_scales, const float *W_bias, const int8_t *R, const int32_t *R_sums, const float *R_scales,
         const float *R_bias, const float *head, const float *head_bias, int outputs, float *work, float *y) {
    uint8_t q[4096];
    int columns = gates * units;
    float *pre = work + (long)time * columns, *h = pre + columns, *c = h + units;
    memset(h, 0, 2 * units * sizeof(float));
    for (int t = 0; t < time; t++) {
        float scale = quantise(x + (long)t * features, features, q);
        product(q, scale, W, W_sums, W_scales, W_bias, features, columns, work + (long)t * columns);
    }
    for (int t = 0; t < time; t++) {
        float scale = quantise(h, units, q);
        product(q, scale, R, R_sums, R_scales, R_bias, units, columns, pre);
        if (gates == 4) lstm_gates(pre, work + (long)t * columns, h, c, units);
        else gru_gates(pre, work + (long)t * columns, h, units);
    }
    for (int k = 0; k < outputs; k++) {
        __m512 sum = _mm512_setzero_ps();
        for (int u = 0; u < units; u += 16)
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(h + u), _mm512_loadu_ps(head + (long)k * units + u), sum);
        y[k] = _mm512_reduce_add_ps(sum) + head_bias[k];
    }
}

#else

int has_vnni(void) { return 0; }

#endif
