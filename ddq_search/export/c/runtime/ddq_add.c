/* Sum of two tensors on their own grids. |x - in_zero| << left_shift < 2^28, so that both terms and their sum fit int32.
 *
 * An argument has at most 256 values, so where a tensor has more elements each value is rescaled once and not each
 * element: 2 KiB of stack.
 */
#include "ddq_steps.h"

enum { AT_ONCE = 8 };

/* One rounding by a plain shift. A product is below 2^62 in magnitude, so 2^62 more makes it positive; what that adds to
 * the result, 2^62 >> right, is subtracted again. */
typedef struct {
    int64_t raised, excess;
    int32_t multiplier;
    int right;
} single;

static single single_of(ddq_factor factor) {
    const int right = 31 - factor.shift;
    const single s = {((int64_t)1 << 62) + ((int64_t)1 << (right - 1)), (int64_t)1 << (62 - right), factor.multiplier,
                      right};
    return s;
}

static int64_t requantize_single(single s, int32_t acc) {
    return (int64_t)((uint64_t)((int64_t)acc * s.multiplier + s.raised) >> s.right) - s.excess;
}

typedef struct {
    const ddq_add_facts *facts;
    int32_t values[2][256];
    single out;
} addition;

static int32_t rescaled(const ddq_add_facts *f, int side, int code) {
    return ddq_requantize((code - f->in_zero[side]) * (1 << f->left_shift), f->in[side].multiplier, f->in[side].shift,
                          f->rounding);
}

/* Eight codes from as many bytes as they fill. */
static void expand(const uint8_t *x, int bits, uint8_t *codes) {
    if (bits == 8) {
        for (int i = 0; i < AT_ONCE; i++)
            codes[i] = x[i];
    } else if (bits == 4) {
        for (int i = 0; i < AT_ONCE / 2; i++) {
            codes[2 * i] = x[i] & 15;
            codes[2 * i + 1] = x[i] >> 4;
        }
    } else {
        for (int i = 0; i < AT_ONCE / 4; i++)
            for (int place = 0; place < 4; place++)
                codes[4 * i + place] = x[i] >> (2 * place) & 3;
    }
}

static void compress(const uint8_t *codes, int bits, uint8_t *y) {
    if (bits == 8) {
        for (int i = 0; i < AT_ONCE; i++)
            y[i] = codes[i];
    } else if (bits == 4) {
        for (int i = 0; i < AT_ONCE / 2; i++)
            y[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
    } else {
        for (int i = 0; i < AT_ONCE / 4; i++, codes += 4)
            y[i] = (uint8_t)(codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6);
    }
}

/* What every code of an argument is on the common grid. */
static void rescale(const ddq_add_facts *f, int side, int bits, int32_t *values) {
    const single s = single_of(f->in[side]);
    for (int code = 0; code < 1 << bits; code++)
        values[code] = f->rounding == DDQ_SINGLE
                           ? (int32_t)requantize_single(s, (code - f->in_zero[side]) * (1 << f->left_shift))
                           : rescaled(f, side, code);
}

static void add_single(const addition *with, const uint8_t *a, const uint8_t *b, uint8_t *y) {
    const single out = with->out;
    const int32_t zero = with->facts->out_zero, low = with->facts->low, high = with->facts->high;
    for (int i = 0; i < AT_ONCE; i++) {
        const int64_t code = requantize_single(out, with->values[0][a[i]] + with->values[1][b[i]]) + zero;
        y[i] = (uint8_t)(code < low ? low : code > high ? high : code);
    }
}

static void add_double(const addition *with, const uint8_t *a, const uint8_t *b, uint8_t *y) {
    const ddq_add_facts *f = with->facts;
    for (int i = 0; i < AT_ONCE; i++) {
        const int32_t sum = with->values[0][a[i]] + with->values[1][b[i]];
        const int32_t code = ddq_requantize_double(sum, f->out.multiplier, f->out.shift);
        y[i] = ddq_clamped((int64_t)code + f->out_zero, f->low, f->high);
    }
}

/* Tensors of one size, eight elements at a time; returns how many elements that were. */
static uint32_t add_blocks(const ddq_step *step, uint8_t *arena) {
    addition with = {.facts = step->facts};
    const ddq_add_facts *f = step->facts;
    const uint8_t *x[2] = {arena + step->x[0], arena + step->x[1]};
    uint8_t *y = arena + step->y, codes[3][AT_ONCE];
    with.out = single_of(f->out);
    rescale(f, 0, step->in_bits[0], with.values[0]);
    rescale(f, 1, step->in_bits[1], with.values[1]);
    uint32_t i = 0;
    for (; i + AT_ONCE <= step->elements; i += AT_ONCE) {
        for (int side = 0; side < 2; side++) {
            expand(x[side], step->in_bits[side], codes[side]);
            x[side] += step->in_bits[side];
        }
        if (f->rounding == DDQ_SINGLE)
            add_single(&with, codes[0], codes[1], codes[2]);
        else
            add_double(&with, codes[0], codes[1], codes[2]);
        compress(codes[2], step->out_bits, y);
        y += step->out_bits;
    }
    return i;
}

void ddq_add(const ddq_step *step, uint8_t *arena) {
    const ddq_add_facts *f = step->facts;
    const int one_size = f->elements[0] == f->elements[1];
    const uint32_t values = (1u << step->in_bits[0]) + (1u << step->in_bits[1]);
    for (uint32_t i = one_size && step->elements > values ? add_blocks(step, arena) : 0; i < step->elements; i++) {
        int32_t sum = 0;
        for (int side = 0; side < 2; side++)
            sum += rescaled(f, side, ddq_get(arena + step->x[side], i % f->elements[side], step->in_bits[side]));
        const int64_t code = ddq_requantize_exact(sum, f->out.multiplier, f->out.shift, f->rounding);
        ddq_put(arena + step->y, i, step->out_bits, ddq_clamped(code + f->out_zero, f->low, f->high));
    }
}
