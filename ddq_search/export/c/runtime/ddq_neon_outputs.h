/* From int32 sums to packed output codes: bias, requantization, zero point, clamp, packing.
 *
 * Bit-identical to ddq_requantize for a multiplier of 0 or in [2^30, 2^31) and shifts of -31 … 30:
 *   double: saturating left shift, rounding doubling high multiply and a right shift with ties away from zero are the
 *           instructions SQSHL, SQRDMULH and SRSHL after -1 is added to negative values that are shifted.
 *   single: with n = max(1, -shift), SRSHL(SQDMULH(SQSHL(acc, shift + n), m), -n): the truncating high multiply is
 *           floor(acc * 2^(shift + n) * m / 2^31), and floor((floor(z) + 2^(n - 1)) / 2^n) = floor((z + 2^(n - 1)) / 2^n).
 *           Where the left shift saturates the value is at least 2^29 in magnitude and is clamped either way.
 */
#ifndef DDQ_NEON_OUTPUTS_H
#define DDQ_NEON_OUTPUTS_H

#include "ddq_kernels.h"
#include "ddq_neon_vectors.h"

/* Constants of four channels. */
typedef struct {
    int32x4_t bias, multiplier, left, right;
} ddq_scales;

/* Constants of the layer. */
typedef struct {
    int16x8_t zero;
    uint8x16_t low, high;
    int rounding;
} ddq_range;

DDQ_INLINE ddq_range ddq_range_of(const ddq_layer *layer) {
    ddq_range range;
    range.zero = vdupq_n_s16(layer->out_zero);
    range.low = vdupq_n_u8(layer->low);
    range.high = vdupq_n_u8(layer->high);
    range.rounding = layer->rounding;
    return range;
}

DDQ_INLINE ddq_scales ddq_scales_from(const int32_t *bias, const int32_t *multiplier, const int8_t *shift, int top) {
    ddq_scales s;
    const int32x4_t places = vmovl_s16(vget_low_s16(vmovl_s8(ddq_load4(shift))));
    s.bias = vld1q_s32(bias);
    s.multiplier = vld1q_s32(multiplier);
    s.right = vminq_s32(places, vdupq_n_s32(top));
    s.left = vsubq_s32(places, s.right);
    return s;
}

/* Channels c … c + 3, as far as there are such. */
DDQ_INLINE ddq_scales ddq_scales_of(const ddq_layer *layer, int c) {
    const int top = layer->rounding == DDQ_DOUBLE ? 0 : -1;
    int32_t bias[4] = {0}, multiplier[4] = {0};
    int8_t shift[4] = {0};
    if (c + 4 <= layer->out_c)
        return ddq_scales_from(layer->bias + c, layer->multiplier + c, layer->shift + c, top);
    DDQ_KEEP for (int i = 0; c + i < layer->out_c; i++) {
        bias[i] = layer->bias[c + i];
        multiplier[i] = layer->multiplier[c + i];
        shift[i] = layer->shift[c + i];
    }
    return ddq_scales_from(bias, multiplier, shift, top);
}

DDQ_INLINE int32x4_t ddq_scale(int32x4_t acc, const ddq_scales *s, int rounding) {
    acc = vqshlq_s32(vaddq_s32(acc, s->bias), s->left);
    if (rounding == DDQ_DOUBLE) {
        acc = vqrdmulhq_s32(acc, s->multiplier);
        acc = vqaddq_s32(acc, vshrq_n_s32(vandq_s32(acc, s->right), 31));
    } else {
        acc = vqdmulhq_s32(acc, s->multiplier);
    }
    return vrshlq_s32(acc, s->right);
}

/* Sixteen scaled values as codes. */
DDQ_INLINE uint8x16_t ddq_codes(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d, const ddq_range *range) {
    const int16x8_t low = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a), b), range->zero);
    const int16x8_t high = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(c), d), range->zero);
    return vminq_u8(vmaxq_u8(vqmovun_high_s16(vqmovun_s16(low), high), range->low), range->high);
}

/* Sixteen codes: four channels of four positions. */
DDQ_INLINE uint8x16_t ddq_requantized(const int32_t *sum, const ddq_scales *s, const ddq_range *range, int rounding) {
    int32x4_t value[4];
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        value[p] = ddq_scale(vld1q_s32(sum + 4 * p), s, rounding);
    return ddq_codes(value[0], value[1], value[2], value[3], range);
}

DDQ_INLINE void ddq_store_codes(uint8_t *to, uint32_t apart, uint8x16_t codes) {
    DDQ_STORE4(to, codes, 0);
    DDQ_STORE4(to + apart, codes, 1);
    DDQ_STORE4(to + 2 * apart, codes, 2);
    DDQ_STORE4(to + 3 * apart, codes, 3);
}

DDQ_INLINE void ddq_finish_as(const int32_t *sum, const ddq_scales *s, const ddq_range *range, uint8_t *to,
                              uint32_t apart, int pixels, int count, int rounding) {
    uint8x16_t codes[3];
    uint8_t few[16];
    DDQ_KEEP for (; pixels >= 12 && count == 4; pixels -= 12, sum += 48, to += 12 * apart) {
        DDQ_UNROLL for (int i = 0; i < 3; i++)
            codes[i] = ddq_requantized(sum + 16 * i, s, range, rounding);
        DDQ_UNROLL for (uint32_t i = 0; i < 3; i++)
            ddq_store_codes(to + 4 * i * apart, apart, codes[i]);
    }
    DDQ_KEEP for (; pixels > 0; pixels -= 4, sum += 16, to += 4 * apart) {
        codes[0] = ddq_requantized(sum, s, range, rounding);
        if (pixels >= 4 && count == 4) {
            ddq_store_codes(to, apart, codes[0]);
            continue;
        }
        vst1q_u8(few, codes[0]);
        DDQ_KEEP for (int p = 0; p < (pixels < 4 ? pixels : 4); p++)
            DDQ_KEEP for (int c = 0; c < count; c++)
                to[(uint32_t)p * apart + (uint32_t)c] = few[4 * p + c];
    }
}

/* Codes of `count` <= 4 channels of `pixels` positions from sums [position][4], the last four rounded up;
 * `apart` bytes lie from one position's codes to the next. */
static inline void ddq_finish(const int32_t *sum, const ddq_scales *s, const ddq_range *range, uint8_t *to,
                              uint32_t apart, int pixels, int count) {
    if (range->rounding == DDQ_DOUBLE)
        ddq_finish_as(sum, s, range, to, apart, pixels, count, DDQ_DOUBLE);
    else
        ddq_finish_as(sum, s, range, to, apart, pixels, count, DDQ_SINGLE);
}

DDQ_INLINE uint8x16_t ddq_pack_chunk(const uint8_t *codes, int bits) {
    if (bits == 4) {
        const uint8x16x2_t v = vld2q_u8(codes);
        return vorrq_u8(v.val[0], vshlq_n_u8(v.val[1], 4));
    }
    const uint8x16x4_t v = vld4q_u8(codes);
    return vorrq_u8(vorrq_u8(v.val[0], vshlq_n_u8(v.val[1], 2)),
                    vorrq_u8(vshlq_n_u8(v.val[2], 4), vshlq_n_u8(v.val[3], 6)));
}

DDQ_INLINE void ddq_pack_bytes(uint8_t *y, const uint8_t *codes, uint32_t bytes, int bits) {
    const uint32_t each = 8 / (uint32_t)bits;
    DDQ_KEEP for (; bytes >= 16; bytes -= 16, codes += 16 * each, y += 16) {
        vst1q_u8(y, ddq_pack_chunk(codes, bits));
        DDQ_FENCE;
    }
    if (bytes) {
        uint8_t tail[16];
        vst1q_u8(tail, ddq_pack_chunk(codes, bits));
        DDQ_KEEP for (uint32_t i = 0; i < bytes; i++) {
            y[i] = tail[i];
            DDQ_FENCE;
        }
    }
}

/* Packs `count` codes to code `first` of y and after; reads up to 63 codes more. */
static inline void ddq_pack(uint8_t *y, uint32_t first, const uint8_t *codes, uint32_t count, int bits) {
    const uint32_t each = 8 / (uint32_t)bits;
    uint32_t done = 0;
    if (first % each == 0) {
        done = count / each * each;
        if (bits == 4)
            ddq_pack_bytes(y + first / each, codes, count / each, 4);
        else
            ddq_pack_bytes(y + first / each, codes, count / each, 2);
    }
    for (; done < count; done++)
        ddq_put(y, first + done, bits, codes[done]);
}

#endif
