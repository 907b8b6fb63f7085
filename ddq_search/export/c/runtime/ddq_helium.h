/* What the Helium kernels share: signed codes, requantization of rows, packing.
 *
 * Activations become int8 on the way into scratch (code XOR 0x80, that is code - 128), so that VMLADAV.S8 takes 16
 * products at a time; the exporter folds the rest into the bias (offset 128). Without Helium the same steps are plain
 * C on the same layouts, for hosts and sanitizers.
 */
#ifndef DDQ_HELIUM_H
#define DDQ_HELIUM_H

#include "ddq_kernels.h"

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>
#endif

enum { DDQ_LANES = 16, DDQ_OFFSET = 128 };

ddq_kernel ddq_helium_conv_w8, ddq_helium_conv_w4, ddq_helium_conv_w2;
ddq_kernel ddq_helium_depthwise_w8, ddq_helium_depthwise_w4, ddq_helium_depthwise_w2;

/* Writes `count` bytes of `code` - 128. */
static inline void ddq_fill_signed(int8_t *to, uint8_t code, int count) {
#if defined(__ARM_FEATURE_MVE)
    const int8x16_t filled = vdupq_n_s8((int8_t)(code - DDQ_OFFSET));
    for (; count > 0; count -= DDQ_LANES, to += DDQ_LANES)
        vst1q_p_s8(to, filled, vctp8q((uint32_t)count));
#else
    for (int i = 0; i < count; i++)
        to[i] = (int8_t)(code - DDQ_OFFSET);
#endif
}

#if defined(__ARM_FEATURE_MVE)
/* 16 codes of 2 or 4 bits from the bytes that hold `count` of them. */
static inline uint8x16_t ddq_unpacked(const uint8_t *from, int count, int bits) {
    if (bits == 4) {
        const uint16x8_t bytes = vldrbq_z_u16(from, vctp16q((uint32_t)(count + 1) / 2));
        const uint16x8_t spread = vorrq_u16(bytes, vshlq_n_u16(bytes, 4));
        return vandq_u8(vreinterpretq_u8_u16(spread), vdupq_n_u8(15));
    }
    const uint32x4_t bytes = vldrbq_z_u32(from, vctp32q((uint32_t)(count + 3) / 4));
    const uint32x4_t pairs = vorrq_u32(bytes, vshlq_n_u32(bytes, 12));
    const uint32x4_t spread = vorrq_u32(pairs, vshlq_n_u32(pairs, 6));
    return vandq_u8(vreinterpretq_u8_u32(spread), vdupq_n_u8(3));
}
#endif

/* Writes `count` bytes of code - 128. */
static inline void ddq_copy_bytes(int8_t *to, const uint8_t *from, int count) {
#if defined(__ARM_FEATURE_MVE)
    const uint8x16_t flip = vdupq_n_u8(DDQ_OFFSET);
    for (; count > 0; count -= DDQ_LANES, from += DDQ_LANES, to += DDQ_LANES) {
        const mve_pred16_t lanes = vctp8q((uint32_t)count);
        vst1q_p_u8((uint8_t *)to, veorq_u8(vld1q_z_u8(from, lanes), flip), lanes);
    }
#else
    for (int i = 0; i < count; i++)
        to[i] = (int8_t)(from[i] - DDQ_OFFSET);
#endif
}

/* Writes codes `first`, `first` + 1, … of a packed tensor of 2 or 4 bits as `count` bytes of code - 128. */
static inline void ddq_copy_signed(int8_t *to, const uint8_t *x, uint32_t first, int count, int bits) {
#if defined(__ARM_FEATURE_MVE)
    const uint8x16_t flip = vdupq_n_u8(DDQ_OFFSET);
    for (; count > 0 && first * (uint32_t)bits % 8; first++, count--)
        *to++ = (int8_t)(ddq_get(x, first, bits) - DDQ_OFFSET);
    const uint8_t *from = x + first * (uint32_t)bits / 8;
    for (; count > 0; count -= DDQ_LANES, from += DDQ_LANES * bits / 8, to += DDQ_LANES)
        vst1q_p_u8((uint8_t *)to, veorq_u8(ddq_unpacked(from, count, bits), flip), vctp8q((uint32_t)count));
#else
    for (int i = 0; i < count; i++)
        to[i] = (int8_t)(ddq_get(x, first + (uint32_t)i, bits) - DDQ_OFFSET);
#endif
}

#if defined(__ARM_FEATURE_MVE)
/* Packs the codes of `lanes`, whole bytes of them. */
static inline void ddq_pack_lanes(uint8_t *to, const uint8_t *codes, int bits, mve_pred16_t lanes) {
    const uint8x16_t loaded = vld1q_z_u8(codes, lanes);
    if (bits == 4) {
        const uint16x8_t pairs = vreinterpretq_u16_u8(loaded);
        vstrbq_p_u16(to, vorrq_u16(pairs, vshrq_n_u16(pairs, 4)), lanes);
    } else {
        const uint32x4_t fours = vreinterpretq_u32_u8(loaded);
        const uint32x4_t pairs = vorrq_u32(fours, vshrq_n_u32(fours, 6));
        vstrbq_p_u32(to, vorrq_u32(pairs, vshrq_n_u32(pairs, 12)), lanes);
    }
}
#endif

/* Writes `count` codes to places `first`, `first` + 1, … of a packed tensor of 2 or 4 bits. */
static inline void ddq_pack(uint8_t *y, uint32_t first, const uint8_t *codes, int count, int bits) {
#if defined(__ARM_FEATURE_MVE)
    const int per_byte = 8 / bits;
    for (; count > 0 && first % (uint32_t)per_byte; first++, count--)
        ddq_put(y, first, bits, *codes++);
    uint8_t *to = y + first / (uint32_t)per_byte;
    const int whole = count & -per_byte;
    for (int left = whole; left > 0; left -= DDQ_LANES, codes += DDQ_LANES, to += DDQ_LANES / per_byte)
        ddq_pack_lanes(to, codes, bits, vctp8q((uint32_t)left));
    codes += whole - ((whole + DDQ_LANES - 1) & -DDQ_LANES);
    first += (uint32_t)whole;
    count -= whole;
#endif
    for (int i = 0; i < count; i++)
        ddq_put(y, first + (uint32_t)i, bits, codes[i]);
}

#if defined(__ARM_FEATURE_MVE)
/* How a channel's shift is split: saturating left shifts before the doubled high product, rounding right shifts
 * (negative numbers) after it. Two roundings: the product is rounded, too. One rounding: it is not, and a right shift
 * by at least one follows; floor((acc * m) / 2^31), then adding half and shifting by n, is floor((acc * m + 2^(30 +
 * n)) / 2^(31 + n)), because the bits that the first floor drops lie below the half. Where the left shift saturates
 * the result exceeds every code. */
static inline int32x4_t ddq_left_shift(int32x4_t shift, int rounding) {
    const int32x4_t raised = rounding == DDQ_DOUBLE ? shift : vaddq_n_s32(shift, 1);
    return vmaxq_s32(raised, vdupq_n_s32(0));
}

/* ddq_requantize of four lanes. */
static inline int32x4_t ddq_requantize4(int32x4_t acc, int32x4_t multiplier, int32x4_t left, int32x4_t right,
                                        int rounding) {
    acc = vqshlq_s32(acc, left);
    if (rounding != DDQ_DOUBLE)
        return vrshlq_s32(vqdmulhq_s32(acc, multiplier), right);
    const int32x4_t high = vqrdmulhq_s32(acc, multiplier);
    return vrshlq_s32(vqaddq_s32(high, vshrq_n_s32(vandq_s32(high, right), 31)), right);
}
#endif

#endif
