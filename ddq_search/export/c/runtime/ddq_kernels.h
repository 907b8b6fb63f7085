/* What every kernel of a weighted layer is given, and the arithmetic they share.
 *
 * Activations are unsigned codes on an affine grid, channel-last: [H, W, C]. Codes of 2 and 4 bits are packed along the
 * flat index without padding, lowest bits first. Weights are signed, narrow range, [out_c, kernel_h, kernel_w,
 * in_c / groups], every output channel in exactly ceil(K * bits / 8) bytes; a kernel may permute the codes within its
 * tensor (its layout), never the number of bytes. A linear layer is a convolution with a 1 x 1 kernel over `out_h`
 * positions.
 *
 *   y = clamp(requantize(sum(w * (x - in_zero)) + bias) + out_zero, low, high)
 *
 * The exporter folds what a kernel does not subtract itself into the bias:
 * bias = program bias + (offset - in_zero) * sum(w), where `offset` is what the kernel subtracts from codes (0 or 128).
 * Positions outside the image hold the code in_zero, so that they contribute nothing.
 */
#ifndef DDQ_KERNELS_H
#define DDQ_KERNELS_H

#include <stdint.h>

enum { DDQ_SINGLE = 0, DDQ_DOUBLE = 1 };

/* A further point of multipoint weights: adds ratio[channel] * codes to the layer's own codes. */
typedef struct {
    const uint8_t *weights; /* packed as the layer's own */
    const int16_t *ratio;   /* [out_c] */
    uint8_t w_bits;
} ddq_point;

typedef struct {
    const uint8_t *weights;    /* packed codes in the kernel's layout */
    const int32_t *bias;       /* [out_c] */
    const int32_t *multiplier; /* [out_c] */
    const int8_t *shift;       /* [out_c] */
    const int8_t *codebook;    /* [1 << w_bits] levels the weight codes index (as unsigned), or NULL: codes are values */
    uint16_t in_h, in_w, in_c;
    uint16_t out_h, out_w, out_c;
    uint16_t groups;
    uint8_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
    uint8_t w_bits, in_bits, out_bits; /* storage widths: 2, 4 or 8 */
    uint8_t in_zero, out_zero, low, high;
    uint8_t rounding; /* DDQ_SINGLE or DDQ_DOUBLE */
    uint8_t point_count;
    const ddq_point *points; /* [point_count], NULL for weights of one point */
} ddq_layer;

/* Reads x, writes y; `scratch` holds what the kernel's description in Python says it needs, 16-byte aligned. */
typedef void ddq_kernel(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch);

/* Right shift that rounds towards minus infinity, which C leaves to the compiler for negative values. */
static inline int32_t ddq_asr32(int32_t value, int shift) {
    return value < 0 ? ~(~value >> shift) : value >> shift;
}

static inline int64_t ddq_asr64(int64_t value, int shift) {
    return value < 0 ? ~(~value >> shift) : value >> shift;
}

/* One rounding: (acc * multiplier + half) >> (31 - shift), ties towards plus infinity. */
static inline int32_t ddq_requantize_single(int32_t acc, int32_t multiplier, int shift) {
    const int right = 31 - shift;
    return (int32_t)ddq_asr64((int64_t)acc * multiplier + ((int64_t)1 << (right - 1)), right);
}

/* Two roundings: saturating left shift, rounding doubling high multiply, then a right shift with ties away from zero. */
static inline int32_t ddq_requantize_double(int32_t acc, int32_t multiplier, int shift) {
    if (shift > 0) {
        const int64_t raised = (int64_t)acc * ((int64_t)1 << shift);
        acc = raised > INT32_MAX ? INT32_MAX : raised < INT32_MIN ? INT32_MIN : (int32_t)raised;
    }
    const int32_t high = (int32_t)ddq_asr64((int64_t)acc * multiplier + ((int64_t)1 << 30), 31);
    if (shift >= 0)
        return high;
    const int32_t mask = (int32_t)(((uint32_t)1 << -shift) - 1);
    const int32_t remainder = high & mask;
    return ddq_asr32(high, -shift) + (remainder > (mask >> 1) + (high < 0));
}

static inline int32_t ddq_requantize(int32_t acc, int32_t multiplier, int shift, int rounding) {
    return rounding == DDQ_DOUBLE ? ddq_requantize_double(acc, multiplier, shift)
                                  : ddq_requantize_single(acc, multiplier, shift);
}

/* As ddq_requantize where the result may leave int32: multipliers far above 1. */
static inline int64_t ddq_requantize_exact(int32_t acc, int32_t multiplier, int shift, int rounding) {
    const int right = 31 - shift;
    if (rounding == DDQ_DOUBLE)
        return ddq_requantize_double(acc, multiplier, shift);
    return ddq_asr64((int64_t)acc * multiplier + ((int64_t)1 << (right - 1)), right);
}

static inline uint8_t ddq_clamped(int64_t code, uint8_t low, uint8_t high) {
    return (uint8_t)(code < low ? low : code > high ? high : code);
}

/* One output code of channel c from its accumulator, bias already added. The exporter gives only layers to a kernel
 * that calls this whose requantized accumulators stay below 2^30. */
static inline uint8_t ddq_code(const ddq_layer *layer, int32_t acc, int c) {
    const int32_t code =
        ddq_requantize(acc, layer->multiplier[c], layer->shift[c], layer->rounding) + layer->out_zero;
    return (uint8_t)(code < layer->low ? layer->low : code > layer->high ? layer->high : code);
}

/* Code `index` of a packed tensor. */
static inline uint8_t ddq_get(const uint8_t *x, uint32_t index, int bits) {
    if (bits == 8)
        return x[index];
    if (bits == 4)
        return (uint8_t)((x[index >> 1] >> ((index & 1) * 4)) & 15);
    return (uint8_t)((x[index >> 2] >> ((index & 3) * 2)) & 3);
}

/* Writes code `index` of a packed tensor; its neighbours keep their values. */
static inline void ddq_put(uint8_t *y, uint32_t index, int bits, uint8_t code) {
    if (bits == 8) {
        y[index] = code;
    } else {
        const int per_byte = 8 / bits, place = (int)(index % (uint32_t)per_byte) * bits;
        const int mask = ((1 << bits) - 1) << place;
        uint8_t *byte = y + index / (uint32_t)per_byte;
        *byte = (uint8_t)((*byte & ~mask) | (code << place));
    }
}

#endif
