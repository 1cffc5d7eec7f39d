/* A decoder layer of the Llama kind over few tokens, whole: norm, queries/keys/values, rotation, attention over each
 * token's own cache, norm, gate and up, down.
 *
 * Tokens in and out, weights of norms, cosines and caches are bf16; what lies between two roundings is fp32.
 *
 * Names: T tokens, W width, H heads, G heads of keys and of values, A those that are rotated (H + G), D width of a
 * head, I inner width, R heads that share keys.
 */
#include "products.c"

enum { KEYS = 64, SHARED = 16, WIDEST = 256 };

typedef struct {
  Linear attend, attended, widen, narrow;
  const bf16 *before, *between, *heads_norm; /* [W], [W], [A][D] or none */
  long W, I, H, G, D, window;                /* window: 0 for none */
  float eps, scaling;
} Layer;

typedef struct {
  bf16 *keys, *values; /* of this token's request in this layer: [G][capacity][D] */
  long capacity, position;
} Place;

static void norm(const bf16 *x, const bf16 *weight, bf16 *out, long n, float eps) {
  __m512 squares = _mm512_setzero_ps();
  for (long i = 0; i < n; i += 16) {
    __m512 v = widened(x + i);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  float mean = _mm512_reduce_add_ps(squares) / (float)n + eps;
  __m512 factor = _mm512_div_ps(_mm512_set1_ps(1), _mm512_sqrt_ps(_mm512_set1_ps(mean > 1e-38f ? mean : 1e-38f)));
  for (long i = 0; i < n; i += 16)
    put16(out + i, _mm512_mul_ps(_mm512_mul_ps(widened(x + i), factor), widened(weight + i)));
}

static void add(const bf16 *x, const bf16 *y, bf16 *out, long n) {
  for (long i = 0; i < n; i += 16) put16(out + i, _mm512_add_ps(widened(x + i), widened(y + i)));
}

/* e^x within 4 units in the last place, from -87 on; below it is 0. Of two, `max` takes the second if one is no number:
 * that stays none. */
INLINE __m512 exponential(__m512 power) {
  __m512 x = _mm512_max_ps(_mm512_set1_ps(-104), power), scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  __m512 whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693147181f), x);
  static const float taylor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f};
  __m512 sum = _mm512_set1_ps(taylor[0]);
  EACH(i, 6) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(taylor[i + 1]));
  return _mm512_scalef_ps(sum, whole);
}

/* silu(gate) * up, of one token. */
static void gated(const bf16 *gate, const bf16 *up, bf16 *out, long n) {
  for (long i = 0; i < n; i += 16) {
    __m512 g = widened(gate + i), one = _mm512_set1_ps(1);
    __m512 opened = _mm512_div_ps(g, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), g))));
    put16(out + i, _mm512_mul_ps(opened, widened(up + i)));
  }
}

/* x cos + (-x2, x1) sin, with x1 and x2 the halves of x; `sin` has the signs. */
static void turn(bf16 *x, const bf16 *cos, const bf16 *sin, long D) {
  for (long i = 0; i < D / 2; i += 16) {
    __m512 first = widened(x + i), second = widened(x + D / 2 + i);
    __m512 a = _mm512_fmadd_ps(first, widened(cos + i), _mm512_mul_ps(second, widened(sin + i)));
    __m512 b = _mm512_fmadd_ps(second, widened(cos + D / 2 + i), _mm512_mul_ps(first, widened(sin + D / 2 + i)));
    put16(x + i, a);
    put16(x + D / 2 + i, b);
  }
}

/* -- attention ---------------------------------------------------------------------------------------------------- */

/* The sums of sixteen vectors, each in its lane. */
INLINE __m512 sums_of(__m512 *v) {
  EACH(i, 8) v[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  EACH(i, 4) {
    __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
    v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  EACH(i, 2) {
    __m512 a = v[2 * i], b = v[2 * i + 1];
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x88), _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
}

/* R queries with the keys and values at positions [begin, end): a block of keys at a time, beside the largest score so
 * far. */
static void attend(const bf16 *query, const bf16 *keys, const bf16 *values, long begin, long end, bf16 *out, long R,
                   long D, float scaling) {
  float sums[SHARED][WIDEST] __attribute__((aligned(64))), scores[SHARED][KEYS] __attribute__((aligned(64)));
  float most[SHARED], total[SHARED];
  for (long r = 0; r < R; r++) {
    most[r] = -INFINITY, total[r] = 0;
    for (long d = 0; d < D; d += 16) _mm512_store_ps(sums[r] + d, _mm512_setzero_ps());
  }
  for (long first = begin; first < end; first += KEYS) {
    long there = end - first < KEYS ? end - first : KEYS;
    for (long r = 0; r < R; r++) {
      __m512 largest = _mm512_set1_ps(most[r]);
      for (long j = 0; j < there; j += 16) {
        __m512 products[16];
        for (long i = 0; i < 16; i++) {
          __m512 sum = _mm512_setzero_ps();
          long at = j + i < there ? j + i : there - 1; /* what is not there is taken out below */
          for (long d = 0; d < D; d += LANES)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)load(query + r * D + d), (__m512bh)load(keys + (first + at) * D + d));
          products[i] = sum;
        }
        __mmask16 mask = there - j < 16 ? (__mmask16)((1 << (there - j)) - 1) : 0xffff;
        __m512 found = _mm512_mul_ps(sums_of(products), _mm512_set1_ps(scaling));
        found = _mm512_mask_blend_ps(mask, _mm512_set1_ps(-INFINITY), found);
        largest = _mm512_max_ps(largest, found);
        _mm512_store_ps(scores[r] + j, found);
      }
      float now = _mm512_reduce_max_ps(largest);
      __m512 kept = exponential(_mm512_set1_ps(most[r] - now)), sum = _mm512_setzero_ps();
      for (long j = 0; j < there; j += 16) {
        __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(scores[r] + j), _mm512_set1_ps(now)));
        _mm512_store_ps(scores[r] + j, weight);
        sum = _mm512_add_ps(sum, weight);
      }
      total[r] = total[r] * _mm512_cvtss_f32(kept) + _mm512_reduce_add_ps(sum);
      most[r] = now;
      for (long d = 0; d < D; d += 16) _mm512_store_ps(sums[r] + d, _mm512_mul_ps(kept, _mm512_load_ps(sums[r] + d)));
    }
    for (long d = 0; d < D; d += 16)
      for (long r = 0; r < R; r += 4) {
        __m512 kept[4];
        long some = R - r < 4 ? R - r : 4;
        EACH(i, 4) kept[i] = _mm512_load_ps(sums[i < some ? r + i : r] + d);
        for (long j = 0; j < there; j++) {
          __m512 value = widened(values + (first + j) * D + d);
          EACH(i, 4) kept[i] = _mm512_fmadd_ps(_mm512_set1_ps(scores[i < some ? r + i : r][j]), value, kept[i]);
        }
        for (long i = 0; i < some; i++) _mm512_store_ps(sums[r + i] + d, kept[i]);
      }
  }
  for (long r = 0; r < R; r++)
    for (long d = 0; d < D; d += 16)
      put16(out + r * D + d, _mm512_div_ps(_mm512_load_ps(sums[r] + d), _mm512_set1_ps(total[r])));
}

/* -- the layer ---------------------------------------------------------------------------------------------------- */

/* Queries, keys and values of one token: turned, and the latter two put into its cache. */
static void settle(const Layer *l, bf16 *all, const bf16 *cos, const bf16 *sin, const Place *place) {
  long D = l->D, A = l->H + l->G;
  for (long a = 0; a < A; a++) {
    if (l->heads_norm) norm(all + a * D, l->heads_norm + a * D, all + a * D, D, l->eps);
    turn(all + a * D, cos, sin, D);
  }
  for (long g = 0; g < l->G; g++) {
    long at = (g * place->capacity + place->position) * D;
    memcpy(place->keys + at, all + (l->H + g) * D, 2 * D);
    memcpy(place->values + at, all + (A + g) * D, 2 * D);
  }
}

/* `hidden` [T][W] becomes what the layer makes of it. Tokens of one request stand in order. -1: no memory. */
int medley_layer(const Layer *l, bf16 *hidden, const bf16 *cos, const bf16 *sin, const Place *places, long T, int threads) {
  long W = l->W, I = l->I, D = l->D, G = l->G, R = l->H / G, N = (l->H + 2 * G) * D, V = l->H * D;
  long widest = W > V ? (W > I ? W : I) : (V > I ? V : I);
  bf16 *given = malloc(2 * T * (widest + (N > 2 * I ? N : 2 * I) + W));
  if (!given) return -1;
  bf16 *wide_T = given + T * widest, *answer = wide_T + T * (N > 2 * I ? N : 2 * I);
  int failed = 0;
  for (long t = 0; t < T; t++) norm(hidden + t * W, l->before, given + t * W, W, l->eps);
  failed |= medley_product(&l->attend, given, wide_T, T, threads);
  for (long t = 0; t < T; t++) settle(l, wide_T + t * N, cos + t * D, sin + t * D, places + t);
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
  for (long t = 0; t < T; t++)
    for (long g = 0; g < G; g++) {
      const Place *p = places + t;
      long from = l->window && p->position >= l->window ? p->position - l->window + 1 : 0, own = g * p->capacity * D;
      attend(wide_T + t * N + g * R * D, p->keys + own, p->values + own, from, p->position + 1, given + t * V + g * R * D,
             R, D, l->scaling);
    }
  failed |= medley_product(&l->attended, given, answer, T, threads);
  add(hidden, answer, hidden, T * W);
  for (long t = 0; t < T; t++) norm(hidden + t * W, l->between, given + t * W, W, l->eps);
  failed |= medley_product(&l->widen, given, wide_T, T, threads);
  for (long t = 0; t < T; t++) gated(wide_T + t * 2 * I, wide_T + t * 2 * I + I, given + t * I, I);
  failed |= medley_product(&l->narrow, given, answer, T, threads);
  add(hidden, answer, hidden, T * W);
  free(given);
  return failed;
}
