/* Instructions of the Cortex-M DSP extension (Armv7E-M, Armv8-M with DSP), and the same in portable C.
 *
 * Lanes: a 32-bit word as two 16-bit lanes, low lane first. Sums wrap around modulo 2^32 as the instructions' do.
 */
#ifndef DDQ_DSP_H
#define DDQ_DSP_H

#include <stdint.h>
#include <string.h>

#include "ddq_kernels.h"

#if defined(__ARM_FEATURE_DSP) && !defined(__aarch64__)
#define DDQ_DSP 1
#else
#define DDQ_DSP 0
#endif

/* The loops in assembly need every register: only where the compiler keeps none for itself. */
#if DDQ_DSP && defined(__OPTIMIZE__) && !defined(__clang__)
#define DDQ_DSP_LOOPS 1
#else
#define DDQ_DSP_LOOPS 0
#endif

/* For functions with parameters that must be constants where they are used. */
#define DDQ_DSP_INLINE static inline __attribute__((always_inline))

static inline uint32_t ddq_dsp_word(const uint8_t *p) {
#if DDQ_DSP
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
#else
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
#endif
}

static inline uint32_t ddq_dsp_half(const uint8_t *p) {
#if DDQ_DSP
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return half;
#else
    return p[0] | (uint32_t)p[1] << 8;
#endif
}

static inline void ddq_dsp_put_half(uint8_t *p, uint32_t half) {
#if DDQ_DSP
    const uint16_t value = (uint16_t)half;
    memcpy(p, &value, sizeof value);
#else
    p[0] = (uint8_t)half, p[1] = (uint8_t)(half >> 8);
#endif
}

static inline void ddq_dsp_put_word(uint8_t *p, uint32_t word) {
#if DDQ_DSP
    memcpy(p, &word, sizeof word);
#else
    ddq_dsp_put_half(p, word), ddq_dsp_put_half(p + 2, word >> 16);
#endif
}

#if DDQ_DSP
#define DDQ_DSP_UNARY(name, instruction)                                                                               \
    static inline uint32_t name(uint32_t a) {                                                                          \
        uint32_t result;                                                                                               \
        __asm__(instruction : "=r"(result) : "r"(a));                                                                  \
        return result;                                                                                                 \
    }
#define DDQ_DSP_BINARY(name, instruction)                                                                              \
    static inline uint32_t name(uint32_t a, uint32_t b) {                                                              \
        uint32_t result;                                                                                               \
        __asm__(instruction " %0, %1, %2" : "=r"(result) : "r"(a), "r"(b));                                            \
        return result;                                                                                                 \
    }
#define DDQ_DSP_SUM(name, instruction)                                                                                 \
    static inline int32_t name(uint32_t a, uint32_t b, int32_t sum) {                                                  \
        int32_t result;                                                                                                \
        __asm__(instruction " %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));                              \
        return result;                                                                                                 \
    }
#else
static inline int32_t ddq_dsp_lane(uint32_t a, int lane) {
    const int32_t value = (int32_t)(a >> (16 * lane) & 0xFFFF);
    return value < 0x8000 ? value : value - 0x10000;
}

static inline int32_t ddq_dsp_byte(uint32_t a, int byte) {
    const int32_t value = (int32_t)(a >> (8 * byte) & 0xFF);
    return value < 0x80 ? value : value - 0x100;
}

static inline uint32_t ddq_dsp_pair(int32_t low, int32_t high) {
    return ((uint32_t)low & 0xFFFF) | (uint32_t)high << 16;
}

static inline int32_t ddq_dsp_wrapped(uint32_t sum) {
    return sum <= INT32_MAX ? (int32_t)sum : (int32_t)(sum - 0x80000000u) + INT32_MIN;
}
#endif

/* Sum modulo 2^32. */
static inline int32_t ddq_dsp_add(int32_t a, int32_t b) {
#if DDQ_DSP
    return (int32_t)((uint32_t)a + (uint32_t)b);
#else
    return ddq_dsp_wrapped((uint32_t)a + (uint32_t)b);
#endif
}

/* Signed bytes 0 and 2 as lanes; bytes 1 and 3 as lanes. */
#if DDQ_DSP
DDQ_DSP_UNARY(ddq_dsp_sxtb16, "sxtb16 %0, %1")
DDQ_DSP_UNARY(ddq_dsp_sxtb16_odd, "sxtb16 %0, %1, ror #8")
DDQ_DSP_UNARY(ddq_dsp_uxtb16, "uxtb16 %0, %1")
DDQ_DSP_UNARY(ddq_dsp_uxtb16_odd, "uxtb16 %0, %1, ror #8")
#else
static inline uint32_t ddq_dsp_sxtb16(uint32_t a) { return ddq_dsp_pair(ddq_dsp_byte(a, 0), ddq_dsp_byte(a, 2)); }
static inline uint32_t ddq_dsp_sxtb16_odd(uint32_t a) { return ddq_dsp_pair(ddq_dsp_byte(a, 1), ddq_dsp_byte(a, 3)); }
static inline uint32_t ddq_dsp_uxtb16(uint32_t a) { return a & 0x00FF00FF; }
static inline uint32_t ddq_dsp_uxtb16_odd(uint32_t a) { return a >> 8 & 0x00FF00FF; }
#endif

/* sum + a.low * b.low + a.high * b.high; sum + a.low * b.low; sum + a.high * b.high; sum + the bytes of a. */
#if DDQ_DSP
DDQ_DSP_SUM(ddq_dsp_smlad, "smlad")
DDQ_DSP_SUM(ddq_dsp_smlabb, "smlabb")
DDQ_DSP_SUM(ddq_dsp_smlatt, "smlatt")
static inline int32_t ddq_dsp_bytes(uint32_t a, int32_t sum) {
    int32_t result;
    __asm__("usada8 %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(0), "r"(sum));
    return result;
}
#else
static inline int32_t ddq_dsp_smlabb(uint32_t a, uint32_t b, int32_t sum) {
    return ddq_dsp_wrapped((uint32_t)sum + (uint32_t)(ddq_dsp_lane(a, 0) * ddq_dsp_lane(b, 0)));
}
static inline int32_t ddq_dsp_smlatt(uint32_t a, uint32_t b, int32_t sum) {
    return ddq_dsp_wrapped((uint32_t)sum + (uint32_t)(ddq_dsp_lane(a, 1) * ddq_dsp_lane(b, 1)));
}
static inline int32_t ddq_dsp_smlad(uint32_t a, uint32_t b, int32_t sum) {
    return ddq_dsp_smlatt(a, b, ddq_dsp_smlabb(a, b, sum));
}
static inline int32_t ddq_dsp_bytes(uint32_t a, int32_t sum) {
    return sum + (int32_t)((a & 0xFF) + (a >> 8 & 0xFF) + (a >> 16 & 0xFF) + (a >> 24));
}
#endif

/* Unsigned saturating sum and difference of four bytes; differences of lanes; the upper half of a 64-bit product,
 * as it is and rounded; a saturating sum; a clamped to 20 bits; a shift towards minus infinity; half of a, rounded so, clamped to 0 … 255. */
#if DDQ_DSP
DDQ_DSP_BINARY(ddq_dsp_ssub16, "ssub16")
static inline int32_t ddq_dsp_qadd(int32_t a, int32_t b) {
    int32_t result;
    __asm__("qadd %0, %1, %2" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
static inline int32_t ddq_dsp_asr(int32_t a, int shift) { return a >> shift; }
DDQ_DSP_BINARY(ddq_dsp_uqadd8, "uqadd8")
DDQ_DSP_BINARY(ddq_dsp_uqsub8, "uqsub8")
static inline int32_t ddq_dsp_smmul(int32_t a, int32_t b) {
    int32_t result;
    __asm__("smmul %0, %1, %2" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
static inline int32_t ddq_dsp_smmulr(int32_t a, int32_t b) {
    int32_t result;
    __asm__("smmulr %0, %1, %2" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
static inline int32_t ddq_dsp_ssat20(int32_t a) {
    int32_t result;
    __asm__("ssat %0, #20, %1" : "=r"(result) : "r"(a));
    return result;
}
static inline uint32_t ddq_dsp_half_clamped(int32_t a) {
    uint32_t result;
    __asm__("usat %0, #8, %1, asr #1" : "=r"(result) : "r"(a));
    return result;
}
#else
static inline uint32_t ddq_dsp_ssub16(uint32_t a, uint32_t b) {
    return ddq_dsp_pair(ddq_dsp_lane(a, 0) - ddq_dsp_lane(b, 0), ddq_dsp_lane(a, 1) - ddq_dsp_lane(b, 1));
}
static inline int32_t ddq_dsp_qadd(int32_t a, int32_t b) {
    const int64_t sum = (int64_t)a + b;
    return sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : (int32_t)sum;
}
static inline int32_t ddq_dsp_asr(int32_t a, int shift) { return ddq_asr32(a, shift); }
static inline uint32_t ddq_dsp_uqadd8(uint32_t a, uint32_t b) {
    uint32_t result = 0;
    for (int shift = 0; shift < 32; shift += 8) {
        const uint32_t sum = (a >> shift & 0xFF) + (b >> shift & 0xFF);
        result |= (sum > 255 ? 255 : sum) << shift;
    }
    return result;
}
static inline uint32_t ddq_dsp_uqsub8(uint32_t a, uint32_t b) {
    uint32_t result = 0;
    for (int shift = 0; shift < 32; shift += 8) {
        const uint32_t from = a >> shift & 0xFF, less = b >> shift & 0xFF;
        result |= (from > less ? from - less : 0) << shift;
    }
    return result;
}
static inline int32_t ddq_dsp_smmul(int32_t a, int32_t b) { return (int32_t)ddq_asr64((int64_t)a * b, 32); }
static inline int32_t ddq_dsp_smmulr(int32_t a, int32_t b) {
    return (int32_t)ddq_asr64((int64_t)a * b + ((int64_t)1 << 31), 32);
}
static inline int32_t ddq_dsp_ssat20(int32_t a) {
    return a > 0x7FFFF ? 0x7FFFF : a < -0x80000 ? -0x80000 : a;
}
static inline uint32_t ddq_dsp_half_clamped(int32_t a) {
    const int32_t half = ddq_asr32(a, 1);
    return half < 0 ? 0 : half > 255 ? 255 : (uint32_t)half;
}
#endif

#endif
