/* Products of few tokens with many weights, y[m][n] = sum over k of x[m][k] W[n][k] (+ bias[n]), for processors with
 * AVX512, its bf16 and its VNNI.
 *
 * Such a product takes as long as reading its weights, so each weight is read once, as it lies in memory, and what is
 * done with it takes less time than reading the next. A token's numbers do not depend on the tokens beside it.
 * Tokens, results and biases are bf16; sums are fp32, or exact in int32 for int8. K is a multiple of 32 for
 * bf16, of 16 for int8 (at most 65,536, or those do not fit), of 64 for int4.
 *
 * Tokens meet bf16 weights in blocks of up to four (T), which are laid side by side first: [K / 32][T][32].
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__AVX512BF16__) || !defined(__AVX512VNNI__) || !defined(__AVX512BW__)
#error "this processor has no AVX512 with bf16 and VNNI"
#endif

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)

enum { BLOCK = 4, LANES = 32, GROUP = 64, CHUNK = 16, ROWS = 64, PAIR = 2, AHEAD = 2048, STEPS = 127 * 256 + 127 };

typedef uint16_t bf16;

INLINE float wide(bf16 u) {
  uint32_t bits = (uint32_t)u << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

INLINE bf16 narrow(float f) { /* to nearest, ties to even; what is no number stays none */
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE void put(bf16 *y, const bf16 *bias, long n, float sum) { y[n] = narrow(bias ? sum + wide(bias[n]) : sum); }

INLINE __m512 widened(const bf16 *x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16));
}

INLINE void put16(bf16 *out, __m512 v) { _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh(v)); }

INLINE __m512i load(const void *p) { return _mm512_loadu_si512(p); }

/* 32 values of each of T tokens after another, from rows that lie `K` apart. */
INLINE void side_by_side(const uint16_t *x, uint16_t *out, long K, long T) {
  for (long k = 0; k < K; k += LANES)
    for (long t = 0; t < T; t++) memcpy(out + k * T + t * LANES, x + t * K + k, 2 * LANES);
}

static void in_blocks(const uint16_t *x, uint16_t *out, long M, long K) {
  for (long m = 0; m < M; m += BLOCK) side_by_side(x + m * K, out + m * K, K, M - m < BLOCK ? M - m : BLOCK);
}

/* Every tile of one call: a chunk of rows, which the second level of caches holds, meets all blocks of tokens in turn.
 * `tile` sees n, m, and, known to the compiler, R rows and T tokens; `MOST` rows where there are several tokens. */
#define FOR_ROWS(tile, MOST)                              \
  {                                                       \
    long n = chunk;                                       \
    for (; n + (MOST) <= end; n += (MOST)) {              \
      enum { R = (MOST) };                                \
      tile;                                               \
    }                                                     \
    for (; n < end; n++) {                                \
      enum { R = 1 };                                     \
      tile;                                               \
    }                                                     \
  }

#define FOR_TILES(tile, MOST)                                        \
  for (long chunk = 0; chunk < N; chunk += CHUNK) {                  \
    long end = chunk + CHUNK < N ? chunk + CHUNK : N;                \
    for (long m = 0; m < M; m += BLOCK) {                            \
      switch (M - m) {                                               \
        case 1: { enum { T = 1 }; FOR_ROWS(tile, 1) break; }         \
        case 2: { enum { T = 2 }; FOR_ROWS(tile, MOST) break; }      \
        case 3: { enum { T = 3 }; FOR_ROWS(tile, MOST) break; }      \
        default: { enum { T = 4 }; FOR_ROWS(tile, MOST) }            \
      }                                                              \
    }                                                                \
  }

/* -- bf16: R rows at once ----------------------------------------------------------------------------------------- */

INLINE void bf16_tile(const bf16 *w, const bf16 *x, bf16 *y, const bf16 *bias, long n, long N, long K, int R, int T) {
  __m512 sums[4][BLOCK];
  EACH(r, R) EACH(t, T) sums[r][t] = _mm512_setzero_ps();
  for (long k = 0; k < K; k += LANES) {
    __m512bh row[4];
    EACH(r, R) {
      row[r] = (__m512bh)load(w + r * K + k);
      if (R > 1) _mm_prefetch((const char *)(w + (R + r) * K + k), _MM_HINT_T1);
    }
    EACH(t, T) {
      __m512bh token = (__m512bh)load(x + k * T + t * LANES);
      EACH(r, R) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], row[r], token);
    }
  }
  EACH(r, R) EACH(t, T) put(y + t * N, bias, n + r, _mm512_reduce_add_ps(sums[r][t]));
}

static int bf16_product(const bf16 *W, const bf16 *x, bf16 *y, const bf16 *bias, long M, long N, long K, int threads) {
  bf16 *tokens = malloc(2 * M * K);
  if (!tokens) return -1;
  in_blocks(x, tokens, M, K);
#pragma omp parallel for num_threads(threads) schedule(static)
  FOR_TILES(bf16_tile(W + n * K, tokens + m * K, y + m * N, bias, n, N, K, R, T), 4)
  free(tokens);
  return 0;
}

/* -- int8 and int4: rows side by side, one in each lane ------------------------------------------------------------
 * Tokens are taken in 16 bits and multiplied as two halves of a byte each, v = 256 upper + lower; weights are unsigned
 * bytes, or halves of bytes. So sums are exact, each lane ends as one number, and a token's next four values are the
 * same for all lanes: [K / 4][T][2] words, the four upper halves and the four lower ones. A tile is 64 rows, which is
 * as many as make it pay to spread four values over all lanes, and up to two tokens. */

typedef struct {
  int32_t *words;  /* of all blocks of tokens */
  float *step;     /* of each token: what it was divided by */
  float *sums;     /* of each token, in steps, over each group of columns */
} Tokens;

INLINE float sum_of(__m512i v) { /* in 64 bits: what is no number is the smallest int32 here */
  __m512i first = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(v));
  __m512i second = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1));
  return (float)_mm512_reduce_add_epi64(_mm512_add_epi64(first, second));
}

/* One token as the t-th of T. */
INLINE float in_halves(const bf16 *x, int32_t *words, float *sums, long K, long group, long t, long T) {
  __m512i most = _mm512_setzero_si512(); /* of two values each: without a sign, bf16 are in the order of their bits */
  for (long k = 0; k < K; k += 32) {
    __mmask32 there = K - k < 32 ? 0xffff : 0xffffffff;
    __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi16(there, x + k), _mm512_set1_epi16(0x7fff));
    most = _mm512_max_epu16(most, bits);
  }
  __m512i second = _mm512_and_si512(most, _mm512_set1_epi32((int)0xffff0000));
  uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_slli_epi32(most, 16), second));
  float step = wide((bf16)(largest >> 16)) / STEPS; /* not a number, or infinite, if one of them is: so is the result */
  if (step < 1e-30f) step = 1e-30f;
  __m512 each = _mm512_set1_ps(1 / step);
  __m512i sum = _mm512_setzero_si512();
  for (long k = 0; k < K; k += 16) {
    __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(widened(x + k), each));
    __m128i lower = _mm512_cvtepi32_epi8(whole);
    __m128i upper = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8));
    __m128i halves[2] = {_mm_unpacklo_epi32(upper, lower), _mm_unpackhi_epi32(upper, lower)};
    int32_t *own = words + (k / 4 * T + t) * 2;
    EACH(i, 2) {
      _mm_storel_epi64((void *)(own + 4 * T * i), halves[i]);
      _mm_storeh_pd((void *)(own + 4 * T * i + 2 * T), _mm_castsi128_pd(halves[i]));
    }
    sum = _mm512_add_epi32(sum, whole);
    if ((k + 16) % group == 0) {
      sums[k / group] = sum_of(sum);
      sum = _mm512_setzero_si512();
    }
  }
  return step;
}

static int take(Tokens *tokens, const bf16 *x, long M, long K, long group) {
  long groups = K / group;
  tokens->words = malloc(2 * M * K + 4 * M + 4 * M * groups);
  if (!tokens->words) return -1;
  tokens->step = (float *)((char *)tokens->words + 2 * M * K);
  tokens->sums = tokens->step + M;
  for (long m = 0; m < M; m++) {
    long first = m / PAIR * PAIR, T = M - first < PAIR ? M - first : PAIR;
    int32_t *words = tokens->words + first * K / 2;
    tokens->step[m] = in_halves(x + m * K, words, tokens->sums + m * groups, K, group, m - first, T);
  }
  return 0;
}

INLINE __m512i load_ahead(const uint8_t *w) {
  _mm_prefetch((const char *)w + AHEAD, _MM_HINT_T0);
  return load(w);
}

INLINE __m512 joined(__m512i upper, __m512i lower) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(upper), _mm512_set1_ps(256), _mm512_cvtepi32_ps(lower));
}

/* Of rows n to n + 16, as many as there are. */
INLINE void put_rows(bf16 *y, const bf16 *bias, long n, long N, __m512 sums) {
  float held[16];
  _mm512_storeu_ps(held, sums);
  for (long r = 0; r < 16 && n + r < N; r++) put(y, bias, n + r, held[r]);
}

#define FOR_TOKENS(tile)                       \
  for (long m = 0; m < M; m += PAIR) {         \
    if (M - m == 1) {                          \
      enum { T = 1 };                          \
      tile;                                    \
    } else {                                   \
      enum { T = 2 };                          \
      tile;                                    \
    }                                          \
  }

/* Weights w + 128: [K / 4][64 rows][4]. */
INLINE void int8_tile(const uint8_t *w, const bf16 *scale, const Tokens *x, bf16 *y, const bf16 *bias, long m, long n,
                      long N, long K, int T) {
  __m512i sums[PAIR][2][4];
  EACH(t, T) EACH(half, 2) EACH(r, 4) sums[t][half][r] = _mm512_setzero_si512();
  const int32_t *words = x->words + m * K / 2;
  for (long k = 0; k < K / 4; k++) {
    __m512i row[4];
    EACH(r, 4) row[r] = load_ahead(w + (4 * k + r) * 64);
    EACH(t, T) EACH(half, 2) {
      __m512i four = _mm512_set1_epi32(words[(k * T + t) * 2 + half]);
      EACH(r, 4) sums[t][half][r] = _mm512_dpbusd_epi32(sums[t][half][r], row[r], four);
    }
  }
  EACH(t, T) EACH(r, 4) {
    __m512 moved = _mm512_sub_ps(joined(sums[t][0][r], sums[t][1][r]), _mm512_set1_ps(128 * x->sums[m + t]));
    __m512 all = _mm512_mul_ps(moved, _mm512_mul_ps(widened(scale + n + 16 * r), _mm512_set1_ps(x->step[m + t])));
    put_rows(y + (m + t) * N, bias, n + 16 * r, N, all);
  }
}

/* `W` and `scale` have N rows, rounded up to a multiple of 64. */
static int int8_product(const uint8_t *W, const bf16 *scale, const bf16 *x, bf16 *y, const bf16 *bias, long M, long N,
                        long K, int threads) {
  Tokens tokens;
  if (take(&tokens, x, M, K, K)) return -1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < N; n += ROWS) FOR_TOKENS(int8_tile(W + n * K, scale, &tokens, y, bias, m, n, N, K, T))
  free(tokens.words);
  return 0;
}

/* Weights (q - 8) scale + offset: [K / 8][64 rows][4] bytes, in whose lower halves the first four columns are and in the
 * upper ones the next four; scales and offsets of each group of columns: [K / 64][2][64]. */
INLINE void int4_tile(const uint8_t *w, const bf16 *scales, const Tokens *x, bf16 *y, const bf16 *bias, long m, long n,
                      long N, long K, int T) {
  const int32_t *words = x->words + m * K / 2;
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512 all[PAIR][4];
  EACH(t, T) EACH(r, 4) all[t][r] = _mm512_setzero_ps();
  for (long g = 0; g < K / GROUP; g++, scales += 2 * ROWS) {
    __m512i sums[PAIR][2][4];
    EACH(t, T) EACH(half, 2) EACH(r, 4) sums[t][half][r] = _mm512_setzero_si512();
    for (long i = 0; i < GROUP / 8; i++, w += 4 * 64, words += 4 * T) {
      __m512i row[4];
      EACH(r, 4) row[r] = load_ahead(w + 64 * r);
      EACH(t, T) EACH(half, 2) {
        __m512i four = _mm512_set1_epi32(words[t * 2 + half]);
        EACH(r, 4) sums[t][half][r] = _mm512_dpbusd_epi32(sums[t][half][r], _mm512_and_si512(row[r], nibble), four);
      }
      EACH(r, 4) row[r] = _mm512_and_si512(_mm512_srli_epi16(row[r], 4), nibble);
      EACH(t, T) EACH(half, 2) {
        __m512i four = _mm512_set1_epi32(words[(T + t) * 2 + half]);
        EACH(r, 4) sums[t][half][r] = _mm512_dpbusd_epi32(sums[t][half][r], row[r], four);
      }
    }
    EACH(r, 4) {
      __m512 scale = widened(scales + 16 * r), offset = widened(scales + ROWS + 16 * r);
      offset = _mm512_fmadd_ps(scale, _mm512_set1_ps(-8), offset);
      EACH(t, T) {
        all[t][r] = _mm512_fmadd_ps(scale, joined(sums[t][0][r], sums[t][1][r]), all[t][r]);
        all[t][r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(x->sums[(m + t) * (K / GROUP) + g]), all[t][r]);
      }
    }
  }
  EACH(t, T) EACH(r, 4) {
    __m512 whole = _mm512_mul_ps(all[t][r], _mm512_set1_ps(x->step[m + t]));
    put_rows(y + (m + t) * N, bias, n + 16 * r, N, whole);
  }
}

static int int4_product(const uint8_t *W, const bf16 *scales, const bf16 *x, bf16 *y, const bf16 *bias, long M, long N,
                        long K, int threads) {
  Tokens tokens;
  if (take(&tokens, x, M, K, GROUP)) return -1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < N; n += ROWS) {
    const bf16 *own = scales + n * (K / GROUP) * 2;
    FOR_TOKENS(int4_tile(W + n * (K / 2), own, &tokens, y, bias, m, n, N, K, T))
  }
  free(tokens.words);
  return 0;
}

/* -- the same weights in bf16, row after row, for products of many tokens -------------------------------------------- */

INLINE __m512 of_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi32((int)d, (int)c, (int)b, (int)a)));
}

static void int8_widen(const uint32_t *W, bf16 *out, long first, long end, long K, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = first; n < end; n++) {
    const uint32_t *w = W + n / ROWS * ROWS * (K / 4) + n % ROWS;
    for (long k = 0; k < K; k += 16, w += 4 * ROWS) {
      __m512 unsigned_16 = of_bytes(w[0], w[ROWS], w[2 * ROWS], w[3 * ROWS]);
      put16(out + (n - first) * K + k, _mm512_sub_ps(unsigned_16, _mm512_set1_ps(128)));
    }
  }
}

static void int4_widen(const uint32_t *W, const bf16 *scales, bf16 *out, long first, long end, long K, int threads) {
  const uint32_t lower = 0x0f0f0f0f;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = first; n < end; n++) {
    const uint32_t *w = W + n / ROWS * ROWS * (K / 8) + n % ROWS;
    const bf16 *own = scales + n / ROWS * ROWS * (K / GROUP) * 2 + n % ROWS;
    for (long k = 0; k < K; k += 16, w += 2 * ROWS) {
      const bf16 *group = own + k / GROUP * 2 * ROWS;
      __m512 scale = _mm512_set1_ps(wide(group[0])), offset = _mm512_set1_ps(wide(group[ROWS]) - 8 * wide(group[0]));
      __m512 q = of_bytes(w[0] & lower, w[0] >> 4 & lower, w[ROWS] & lower, w[ROWS] >> 4 & lower);
      put16(out + (n - first) * K + k, _mm512_fmadd_ps(q, scale, offset));
    }
  }
}

/* -- what others call ------------------------------------------------------------------------------------------------- */

enum { BF16, INT8, INT4 };

typedef struct {
  long kind, N, K;
  const void *weights, *scales;
  const bf16 *bias;
} Linear;

/* x [M][K] to y [M][N]. -1: no memory. */
int medley_product(const Linear *l, const bf16 *x, bf16 *y, long M, int threads) {
  switch (l->kind) {
    case INT8: return int8_product(l->weights, l->scales, x, y, l->bias, M, l->N, l->K, threads);
    case INT4: return int4_product(l->weights, l->scales, x, y, l->bias, M, l->N, l->K, threads);
    default: return bf16_product(l->weights, x, y, l->bias, M, l->N, l->K, threads);
  }
}

/* Rows [first, end) of int8 or int4 weights; those of int8 still without their scales. */
void medley_widen(const Linear *l, bf16 *out, long first, long end, int threads) {
  if (l->kind == INT8)
    int8_widen(l->weights, out, first, end, l->K, threads);
  else
    int4_widen(l->weights, l->scales, out, first, end, l->K, threads);
}
