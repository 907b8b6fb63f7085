/* The NEON intrinsics that the kernels use. Without NEON they are defined here lane by lane, so that any host compiles
 * the same kernels and proves their layout, their logic and the bounds of their narrow accumulators.
 */
#ifndef DDQ_NEON_VECTORS_H
#define DDQ_NEON_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__ARM_NEON) && defined(__aarch64__)
#define DDQ_NEON 1
#include <arm_neon.h>
#else
#define DDQ_NEON 0
#endif

#if DDQ_NEON && defined(__GNUC__)
#define DDQ_INLINE static inline __attribute__((always_inline))
/* Keeps loads of one step behind those of the step before: compilers that merge or hoist them run out of registers. */
#define DDQ_FENCE __asm__ volatile("" ::: "memory")
/* Keeps the loads of four vectors together and before their uses: in-order cores wait less. */
#define DDQ_LOADED(v) __asm__ volatile("" : "+w"((v)[0]), "+w"((v)[1]), "+w"((v)[2]), "+w"((v)[3])::"memory")
/* Keeps an increment of a pointer out of the addressing mode of the access before: in-order cores wait less. */
#define DDQ_POINTER(p) __asm__ volatile("" : "+r"(p)::"memory")
#else
#define DDQ_INLINE static inline
#define DDQ_FENCE (void)0
#define DDQ_POINTER(p) (void)0
#define DDQ_LOADED(v) (void)0
#endif

#if DDQ_NEON && defined(__clang__)
#define DDQ_UNROLL _Pragma("clang loop unroll(full)")
#define DDQ_KEEP _Pragma("clang loop unroll(disable) vectorize(disable)")
#elif DDQ_NEON && defined(__GNUC__)
#define DDQ_UNROLL _Pragma("GCC unroll 16")
#define DDQ_KEEP
#else
#define DDQ_UNROLL
#define DDQ_KEEP
#endif

#if !DDQ_NEON

typedef struct { int8_t v[8]; } int8x8_t;
typedef struct { int16_t v[4]; } int16x4_t;
typedef struct { uint8_t v[8]; } uint8x8_t;
typedef struct { int8_t v[16]; } int8x16_t;
typedef struct { uint8_t v[16]; } uint8x16_t;
typedef struct { int16_t v[8]; } int16x8_t;
typedef struct { int32_t v[4]; } int32x4_t;
typedef struct { uint8x16_t val[2]; } uint8x16x2_t;
typedef struct { uint8x16_t val[4]; } uint8x16x4_t;

/* A function whose lane i is `lane`, narrowed to the lane's type as the instruction does it. */
#define DDQ_LANES(result, name, parameters, count, lane)                                                               \
    static inline result name parameters {                                                                             \
        result r;                                                                                                      \
        for (int i = 0; i < count; i++)                                                                                \
            r.v[i] = lane;                                                                                             \
        return r;                                                                                                      \
    }
#define DDQ_ASR(value, places) ((value) < 0 ? ~(~(value) >> (places)) : (value) >> (places))

static inline int32_t ddq_saturate(int64_t value, int bits) {
    const int64_t top = ((int64_t)1 << (bits - 1)) - 1;
    return (int32_t)(value > top ? top : value < -top - 1 ? -top - 1 : value);
}

static inline uint8_t ddq_saturate_u8(int32_t value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

static inline int32_t ddq_rounding_shift(int32_t value, int places) {
    if (places >= 0)
        return (int32_t)((uint32_t)value << places);
    return (int32_t)DDQ_ASR((int64_t)value + ((int64_t)1 << (-places - 1)), -places);
}

DDQ_LANES(int8x16_t, vld1q_s8, (const int8_t *x), 16, x[i])
DDQ_LANES(uint8x16_t, vld1q_u8, (const uint8_t *x), 16, x[i])
DDQ_LANES(int32x4_t, vld1q_s32, (const int32_t *x), 4, x[i])
DDQ_LANES(uint8x16_t, vdupq_n_u8, (uint8_t x), 16, x)
DDQ_LANES(int8x16_t, vdupq_n_s8, (int8_t x), 16, x)
DDQ_LANES(int16x8_t, vdupq_n_s16, (int16_t x), 8, x)
DDQ_LANES(int32x4_t, vdupq_n_s32, (int32_t x), 4, x)
static inline void vst1q_s8(int8_t *y, int8x16_t a) { memcpy(y, a.v, 16); }
static inline void vst1q_s32(int32_t *y, int32x4_t a) { memcpy(y, a.v, 16); }
static inline void vst1q_u8(uint8_t *y, uint8x16_t a) { memcpy(y, a.v, 16); }
static inline void vst2q_u8(uint8_t *y, uint8x16x2_t a) {
    for (int i = 0; i < 32; i++)
        y[i] = a.val[i & 1].v[i >> 1];
}
static inline void vst4q_u8(uint8_t *y, uint8x16x4_t a) {
    for (int i = 0; i < 64; i++)
        y[i] = a.val[i & 3].v[i >> 2];
}
static inline uint8x16x2_t vld2q_u8(const uint8_t *x) {
    uint8x16x2_t r;
    for (int i = 0; i < 32; i++)
        r.val[i & 1].v[i >> 1] = x[i];
    return r;
}
static inline uint8x16x4_t vld4q_u8(const uint8_t *x) {
    uint8x16x4_t r;
    for (int i = 0; i < 64; i++)
        r.val[i & 3].v[i >> 2] = x[i];
    return r;
}

DDQ_LANES(int8x16_t, vreinterpretq_s8_u8, (uint8x16_t a), 16, (int8_t)a.v[i])
DDQ_LANES(uint8x16_t, vreinterpretq_u8_s8, (int8x16_t a), 16, (uint8_t)a.v[i])
DDQ_LANES(int8x8_t, vget_low_s8, (int8x16_t a), 8, a.v[i])
DDQ_LANES(int16x4_t, vget_low_s16, (int16x8_t a), 4, a.v[i])
DDQ_LANES(uint8x16_t, vcombine_u8, (uint8x8_t a, uint8x8_t b), 16, i < 8 ? a.v[i & 7] : b.v[i & 7])
DDQ_LANES(uint8x16_t, vandq_u8, (uint8x16_t a, uint8x16_t b), 16, a.v[i] & b.v[i])
DDQ_LANES(uint8x16_t, vorrq_u8, (uint8x16_t a, uint8x16_t b), 16, a.v[i] | b.v[i])
DDQ_LANES(uint8x16_t, vsubq_u8, (uint8x16_t a, uint8x16_t b), 16, (uint8_t)(a.v[i] - b.v[i]))
DDQ_LANES(uint8x16_t, vmaxq_u8, (uint8x16_t a, uint8x16_t b), 16, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
DDQ_LANES(uint8x16_t, vminq_u8, (uint8x16_t a, uint8x16_t b), 16, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
DDQ_LANES(uint8x16_t, vshrq_n_u8, (uint8x16_t a, int n), 16, (uint8_t)(a.v[i] >> n))
DDQ_LANES(uint8x16_t, vshlq_n_u8, (uint8x16_t a, int n), 16, (uint8_t)(a.v[i] << n))
DDQ_LANES(int8x16_t, vshrq_n_s8, (int8x16_t a, int n), 16, (int8_t)DDQ_ASR(a.v[i], n))
DDQ_LANES(int8x16_t, vshlq_n_s8, (int8x16_t a, int n), 16, (int8_t)((uint8_t)a.v[i] << n))

DDQ_LANES(int8x16_t, vmulq_s8, (int8x16_t a, int8x16_t b), 16, (int8_t)(a.v[i] * b.v[i]))
DDQ_LANES(int8x16_t, vmlaq_s8, (int8x16_t s, int8x16_t a, int8x16_t b), 16, (int8_t)(s.v[i] + a.v[i] * b.v[i]))
DDQ_LANES(int16x8_t, vmull_s8, (int8x8_t a, int8x8_t b), 8, (int16_t)(a.v[i] * b.v[i]))
DDQ_LANES(int16x8_t, vmull_high_s8, (int8x16_t a, int8x16_t b), 8, (int16_t)(a.v[i + 8] * b.v[i + 8]))
DDQ_LANES(int16x8_t, vmlal_s8, (int16x8_t s, int8x8_t a, int8x8_t b), 8, (int16_t)(s.v[i] + a.v[i] * b.v[i]))
DDQ_LANES(int16x8_t, vmlal_high_s8, (int16x8_t s, int8x16_t a, int8x16_t b), 8,
          (int16_t)(s.v[i] + a.v[i + 8] * b.v[i + 8]))
DDQ_LANES(int16x8_t, vpaddlq_s8, (int8x16_t a), 8, (int16_t)(a.v[2 * i] + a.v[2 * i + 1]))
DDQ_LANES(int32x4_t, vpaddlq_s16, (int16x8_t a), 4, a.v[2 * i] + a.v[2 * i + 1])
DDQ_LANES(int32x4_t, vpadalq_s16, (int32x4_t s, int16x8_t a), 4, s.v[i] + a.v[2 * i] + a.v[2 * i + 1])
DDQ_LANES(int16x8_t, vpaddq_s16, (int16x8_t a, int16x8_t b), 8,
          (int16_t)(i < 4 ? a.v[2 * i & 7] + a.v[(2 * i + 1) & 7] : b.v[2 * i & 7] + b.v[(2 * i + 1) & 7]))
DDQ_LANES(int32x4_t, vpaddq_s32, (int32x4_t a, int32x4_t b), 4,
          i < 2 ? a.v[2 * i & 3] + a.v[(2 * i + 1) & 3] : b.v[2 * i & 3] + b.v[(2 * i + 1) & 3])
DDQ_LANES(int32x4_t, vaddw_s16, (int32x4_t s, int16x4_t a), 4, s.v[i] + a.v[i])
DDQ_LANES(int32x4_t, vaddw_high_s16, (int32x4_t s, int16x8_t a), 4, s.v[i] + a.v[i + 4])
DDQ_LANES(int16x8_t, vmovl_s8, (int8x8_t a), 8, a.v[i])
DDQ_LANES(int32x4_t, vmovl_s16, (int16x4_t a), 4, a.v[i])

DDQ_LANES(int32x4_t, vaddq_s32, (int32x4_t a, int32x4_t b), 4, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]))
DDQ_LANES(int32x4_t, vandq_s32, (int32x4_t a, int32x4_t b), 4, a.v[i] & b.v[i])
DDQ_LANES(int32x4_t, vsubq_s32, (int32x4_t a, int32x4_t b), 4, a.v[i] - b.v[i])
DDQ_LANES(int32x4_t, vmaxq_s32, (int32x4_t a, int32x4_t b), 4, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
DDQ_LANES(int32x4_t, vminq_s32, (int32x4_t a, int32x4_t b), 4, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
DDQ_LANES(int32x4_t, vshrq_n_s32, (int32x4_t a, int n), 4, DDQ_ASR(a.v[i], n))
DDQ_LANES(int32x4_t, vqaddq_s32, (int32x4_t a, int32x4_t b), 4, ddq_saturate((int64_t)a.v[i] + b.v[i], 32))
DDQ_LANES(int32x4_t, vqshlq_s32, (int32x4_t a, int32x4_t n), 4,
          ddq_saturate((int64_t)a.v[i] * ((int64_t)1 << n.v[i]), 32)) /* to the left only */
DDQ_LANES(int32x4_t, vqdmulhq_s32, (int32x4_t a, int32x4_t b), 4,
          ddq_saturate(DDQ_ASR((int64_t)a.v[i] * b.v[i], 31), 32))
DDQ_LANES(int32x4_t, vqrdmulhq_s32, (int32x4_t a, int32x4_t b), 4,
          ddq_saturate(DDQ_ASR((int64_t)a.v[i] * b.v[i] + ((int64_t)1 << 30), 31), 32))
DDQ_LANES(int32x4_t, vrshlq_s32, (int32x4_t a, int32x4_t n), 4, ddq_rounding_shift(a.v[i], n.v[i]))
DDQ_LANES(int16x4_t, vqmovn_s32, (int32x4_t a), 4, (int16_t)ddq_saturate(a.v[i], 16))
DDQ_LANES(int16x8_t, vqmovn_high_s32, (int16x4_t a, int32x4_t b), 8,
          (int16_t)(i < 4 ? a.v[i & 3] : ddq_saturate(b.v[i & 3], 16)))
DDQ_LANES(int16x8_t, vqaddq_s16, (int16x8_t a, int16x8_t b), 8, (int16_t)ddq_saturate((int64_t)a.v[i] + b.v[i], 16))
DDQ_LANES(uint8x8_t, vqmovun_s16, (int16x8_t a), 8, ddq_saturate_u8(a.v[i]))
DDQ_LANES(uint8x16_t, vqmovun_high_s16, (uint8x8_t a, int16x8_t b), 16, i < 8 ? a.v[i & 7] : ddq_saturate_u8(b.v[i & 7]))
#endif

/* Four bytes, then zeros. */
#if DDQ_NEON
DDQ_INLINE int8x8_t ddq_load4(const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, 4);
    return vcreate_s8(four);
}
#else
DDQ_LANES(int8x8_t, ddq_load4, (const int8_t *x), 8, i < 4 ? x[i & 3] : 0)
#endif

/* Stores lanes 4 * part … 4 * part + 3; `part` is a constant. */
#if DDQ_NEON
#define DDQ_STORE4(y, a, part) vst1q_lane_u32((uint32_t *)(void *)(y), vreinterpretq_u32_u8(a), part)
#else
#define DDQ_STORE4(y, a, part) memcpy(y, (a).v + 4 * (part), 4)
#endif

/* Four int32 sums whose total is the sum of 16 products added to the total of `sum`. */
#if DDQ_NEON && defined(__ARM_FEATURE_DOTPROD)
DDQ_INLINE int32x4_t ddq_dot(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }
#else
DDQ_INLINE int32x4_t ddq_dot(int32x4_t sum, int8x16_t a, int8x16_t b) {
    return vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), a, b));
}
#endif

#endif
