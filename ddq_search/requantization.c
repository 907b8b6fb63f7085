/* What follows the sums of an integer layer, in one pass over memory: see ddq_search/requantization.py. */

#include <stdint.h>

typedef struct {
    const int64_t *multiplier, *addend, *left, *right;
    int64_t zero_point, low, high, twice;
} form;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* `twice`: rounded after the multiplication by a Q31 number and once more after the shift, ties away from zero. */
static inline uint8_t code_of(int64_t sum, const form *f, int64_t c)
{
    int64_t value;
    if (f->twice) {
        const int64_t shifted = (sum + f->addend[c]) * ((int64_t)1 << f->left[c]);
        const int64_t inside = most(least(shifted, INT32_MAX), INT32_MIN);
        const int64_t high = (inside * f->multiplier[c] + ((int64_t)1 << 30)) >> 31;
        const int64_t half = ((int64_t)1 << f->right[c]) >> 1;
        value = (high + half - (high < 0 && half > 0)) >> f->right[c];
    } else {
        value = (sum * f->multiplier[c] + f->addend[c]) >> f->right[c];
    }
    return (uint8_t)most(least(value + f->zero_point, f->high), f->low);
}

/* Sums are [outer, channels, inner]. */
void ddq_requantize(const float *sums, uint8_t *out, int64_t outer, int64_t channels, int64_t inner,
                    const int64_t *multiplier, const int64_t *addend, const int64_t *left, const int64_t *right,
                    int64_t zero_point, int64_t low, int64_t high, int twice, int threads)
{
    const form f = {multiplier, addend, left, right, zero_point, low, high, twice};
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < outer; block++) {
        const float *from = sums + block * channels * inner;
        uint8_t *to = out + block * channels * inner;
        if (inner == 1) {
            for (int64_t c = 0; c < channels; c++)
                to[c] = code_of((int64_t)from[c], &f, c);
            continue;
        }
        for (int64_t c = 0; c < channels; c++)
            for (int64_t i = 0; i < inner; i++)
                to[c * inner + i] = code_of((int64_t)from[c * inner + i], &f, c);
    }
}

/* Each input's codes become numbers by a table; the form is that of their sum. */
void ddq_add(const uint8_t *a, const uint8_t *b, const int64_t *of_a, const int64_t *of_b, uint8_t *out, int64_t count,
             const int64_t *multiplier, const int64_t *addend, const int64_t *left, const int64_t *right,
             int64_t zero_point, int64_t low, int64_t high, int twice, int threads)
{
    const form f = {multiplier, addend, left, right, zero_point, low, high, twice};
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i++)
        out[i] = code_of(of_a[a[i]] + of_b[b[i]], &f, 0);
}
