/* Quantizing a float32 tensor, forward and backward, each in one pass over memory.

   A tensor is [rows, columns] with one step per row; an activation has one row. Work is cut into blocks of fixed
   size whose partial sums are added in order, so results do not depend on the number of threads. A NaN stays one. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 4096

static inline float on_grid(float x, float inverse, float low, float high)
{
    float code = rintf(x * inverse);
    code = code < low ? low : code;
    return code > high ? high : code;
}

struct span {
    int64_t row, first, count;
};

static inline struct span span_of(int64_t block, int64_t per_row, int64_t columns)
{
    const int64_t first = block % per_row * BLOCK, left = columns - first;
    return (struct span){block / per_row, first, left < BLOCK ? left : BLOCK};
}

static inline int64_t leading_in(struct span span, int64_t leading)
{
    const int64_t left = leading - span.first;
    return left < 0 ? 0 : left < span.count ? left : span.count;
}

int64_t ddq_blocks(int64_t rows, int64_t columns)
{
    return rows * ((columns + BLOCK - 1) / BLOCK);
}

/* `out` may be `x`. An infinite range stands for float32, which changes nothing. Where `inside` is given it is set to 1
   where the code is within the range, else 0; the first `leading` columns of every row are copied to `kept`
   [rows, leading]. */
void ddq_forward(const float *x, float *out, int64_t rows, int64_t columns, const float *step, float low, float high,
                 uint8_t *inside, float *kept, int64_t leading, int threads)
{
    const int64_t per_row = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < rows * per_row; block++) {
        const struct span span = span_of(block, per_row, columns);
        const int64_t row = span.row, first = span.first, count = span.count;
        const float *from = x + row * columns + first;
        float *to = out + row * columns + first;
        const float unit = step[row], inv = 1.0f / unit;
        const float below = (low - 0.5f) * unit, above = (high + 0.5f) * unit;
        if (inside) {
            uint8_t *flags = inside + row * columns + first;
            for (int64_t i = 0; i < count; i++)
                flags[i] = from[i] > below && from[i] < above;
            if (leading > first)
                memcpy(kept + row * leading + first, from, sizeof(float) * (leading - first < count ? leading - first : count));
        }
        if (!isinf(high))
            for (int64_t i = 0; i < count; i++)
                to[i] = on_grid(from[i], inv, low, high) * unit;
        else if (to != from)
            memcpy(to, from, sizeof(float) * count);
    }
}

/* Gradients. `x`: the first `leading` columns of every row, [rows, leading]. `inside`: as the forward pass left it, or
   NULL when `leading` is `columns`: it is then read off `x`. `steps`: [candidates, rows]; `lows`, `highs`: [candidates],
   code range less zero point, infinite for float32. `grad_x` is written everywhere and may be `grad`; sums run over the
   leading columns and are multiplied by `factor`. `partial`: [blocks, 1 + candidates] scratch. Out: `grad_steps`
   [candidates, rows], of the logarithm of the chosen step and zero elsewhere; unless it is NULL `grad_gates`
   [candidates - 1], the differences of <grad, x_q(k)>, over all rows. */
void ddq_backward(const float *x, const uint8_t *inside, const float *grad, float *grad_x, int64_t rows,
                  int64_t columns, int64_t leading, int candidates, int choice, const float *steps, const float *lows,
                  const float *highs, float correction, float factor, double *partial, float *grad_steps,
                  float *grad_gates, int threads)
{
    const int64_t per_row = (columns + BLOCK - 1) / BLOCK;
    const int width = 1 + candidates;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < rows * per_row; block++) {
        const struct span span = span_of(block, per_row, columns);
        const int64_t row = span.row, first = span.first, count = span.count;
        const int64_t kept = leading_in(span, leading);
        const float *xs = x + row * leading + first, *gs = grad + row * columns + first;
        float *out = grad_x + row * columns + first;
        double *sums = partial + block * width;
        const float unit = steps[choice * rows + row], inv = 1.0f / unit;
        const float low = lows[choice], high = highs[choice];
        const float below = (low - 0.5f) * unit, above = (high + 0.5f) * unit;
        float corrected[BLOCK];
        const float *gradient = gs;
        for (int k = 0; k < width; k++)
            sums[k] = 0;
        if (kept && !isinf(high)) {
            float total = 0;
            if (correction != 0.0f) {
                for (int64_t i = 0; i < kept; i++)
                    corrected[i] = gs[i] + correction * (on_grid(xs[i], inv, low, high) * unit - xs[i]);
                gradient = corrected;
            }
            for (int64_t i = 0; i < kept; i++) {
                const float clipped = xs[i] > below && xs[i] < above ? xs[i] : 0.0f;
                total += gradient[i] * (on_grid(xs[i], inv, low, high) * unit - clipped);
            }
            sums[0] = total;
        }
        for (int k = 0; grad_gates && k < candidates; k++) {
            const float unit_k = steps[k * rows + row], inv_k = 1.0f / unit_k;
            float dot = 0;
            if (isinf(highs[k]))
                for (int64_t i = 0; i < kept; i++)
                    dot += gradient[i] * xs[i];
            else
                for (int64_t i = 0; i < kept; i++)
                    dot += gradient[i] * (on_grid(xs[i], inv_k, lows[k], highs[k]) * unit_k);
            sums[1 + k] = dot;
        }
        if (isinf(high)) {
            if (out != gs)
                memcpy(out, gs, sizeof(float) * count);
        } else if (inside) {
            const uint8_t *flags = inside + row * columns + first;
            for (int64_t i = 0; i < count; i++)
                out[i] = flags[i] ? gs[i] : 0.0f;
        } else {
            for (int64_t i = 0; i < count; i++)
                out[i] = xs[i] > below && xs[i] < above ? gs[i] : 0.0f;
        }
    }
    for (int64_t i = 0; i < candidates * rows; i++)
        grad_steps[i] = 0;
    for (int64_t row = 0; row < rows; row++) {
        double change = 0;
        for (int64_t block = row * per_row; block < (row + 1) * per_row; block++)
            change += partial[block * width];
        grad_steps[choice * rows + row] = factor * (float)change;
    }
    float previous = 0;
    for (int k = 0; grad_gates && k < candidates; k++) {
        double dot = 0;
        for (int64_t block = 0; block < rows * per_row; block++)
            dot += partial[block * width + 1 + k];
        if (k)
            grad_gates[k - 1] = factor * ((float)dot - previous);
        previous = (float)dot;
    }
}

/* out = sum over candidates of shares[k] x_q(k). Steps and ranges as above. */
void ddq_mix_forward(const float *x, float *out, int64_t rows, int64_t columns, int candidates, const float *steps,
                     const float *lows, const float *highs, const float *shares, int threads)
{
    const int64_t per_row = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < rows * per_row; block++) {
        const struct span span = span_of(block, per_row, columns);
        const int64_t row = span.row, first = span.first, count = span.count;
        const float *from = x + row * columns + first;
        float *to = out + row * columns + first;
        for (int k = 0; k < candidates; k++) {
            const float step = steps[k * rows + row], inv = 1.0f / step, unit = step * shares[k];
            if (k == 0)
                for (int64_t i = 0; i < count; i++)
                    to[i] = on_grid(from[i], inv, lows[k], highs[k]) * unit;
            else
                for (int64_t i = 0; i < count; i++)
                    to[i] += on_grid(from[i], inv, lows[k], highs[k]) * unit;
        }
    }
}

/* Gradients of the mixture. `partial`: [blocks, 2 candidates] scratch. Out: `change` [candidates, rows], the gradients
   of the logarithms of the steps; `dots` [candidates], <grad, x_q(k)>; both summed over the leading columns. */
void ddq_mix_backward(const float *x, const float *grad, float *grad_x, int64_t rows, int64_t columns, int64_t leading,
                      int candidates, const float *steps, const float *lows, const float *highs, const float *shares,
                      double *partial, double *change, double *dots, int threads)
{
    const int64_t per_row = (columns + BLOCK - 1) / BLOCK;
    const int width = 2 * candidates;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < rows * per_row; block++) {
        const struct span span = span_of(block, per_row, columns);
        const int64_t row = span.row, first = span.first, count = span.count;
        const int64_t kept = leading_in(span, leading);
        const float *xs = x + row * columns + first, *gs = grad + row * columns + first;
        float *out = grad_x + row * columns + first;
        double *sums = partial + block * width;
        float passing[BLOCK];
        for (int64_t i = 0; i < count; i++)
            passing[i] = 0;
        for (int k = 0; k < candidates; k++) {
            const float unit = steps[k * rows + row], inv = 1.0f / unit, share = shares[k];
            const float below = (lows[k] - 0.5f) * unit, above = (highs[k] + 0.5f) * unit;
            float dot = 0, clipped = 0;
            for (int64_t i = 0; i < count; i++)
                passing[i] += xs[i] > below && xs[i] < above ? share : 0.0f;
            for (int64_t i = 0; i < kept; i++) {
                dot += gs[i] * (on_grid(xs[i], inv, lows[k], highs[k]) * unit);
                clipped += xs[i] > below && xs[i] < above ? gs[i] * xs[i] : 0.0f;
            }
            sums[k] = dot;
            sums[candidates + k] = share * (dot - clipped);
        }
        for (int64_t i = 0; i < count; i++)
            out[i] = gs[i] * passing[i];
    }
    for (int64_t i = 0; i < candidates * rows; i++)
        change[i] = 0;
    for (int k = 0; k < candidates; k++)
        dots[k] = 0;
    for (int64_t block = 0; block < rows * per_row; block++)
        for (int k = 0; k < candidates; k++) {
            dots[k] += partial[block * width + k];
            change[k * rows + block / per_row] += partial[block * width + candidates + k];
        }
}
