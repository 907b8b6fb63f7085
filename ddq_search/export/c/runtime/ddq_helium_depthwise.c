/* Depthwise convolutions on Helium, 16 channels at a time (ddq_helium_block.h: what scratch holds of them).
 *
 * Every tap is 16 products of int8 in int16 lanes (even channels and odd channels, VMULLB and VMULLT).
 *
 * Accumulators: |w * (x - 128)| <= 127 * 128 with 8-bit weights, so that two taps fit int16 before they are added to
 * int32; 7 * 128 with 4 bits: 36 taps; 128 with 2 bits: 255 taps.
 *
 * Layout: the taps of a channel by kernel column, then kernel row, packed lowest bits first into ceil(taps * bits / 8)
 * bytes; of every 16 channels (the last block may have fewer) first all first bytes, then all second ones, ….
 *
 * Scratch: bias, multiplier, left and right shifts of 16 channels (int32); their weights, one int8 per tap, taps
 * rounded up to 4; the input rows; one row of output codes.
 */
#include "ddq_helium_block.h"

#if defined(__ARM_FEATURE_MVE)
typedef struct {
    int32x4_t lanes[4];
} sums16;

/* Adds int16 lanes of even and odd channels. */
static inline sums16 widened(sums16 s, int16x8_t even, int16x8_t odd) {
    s.lanes[0] = vaddq_s32(s.lanes[0], vmovlbq_s16(even));
    s.lanes[1] = vaddq_s32(s.lanes[1], vmovltq_s16(even));
    s.lanes[2] = vaddq_s32(s.lanes[2], vmovlbq_s16(odd));
    s.lanes[3] = vaddq_s32(s.lanes[3], vmovltq_s16(odd));
    return s;
}

/* Sum over a window, taps in chunks that fit int16. */
static inline sums16 window(const int8_t *x, const int8_t *w, int taps, int chunk, sums16 s) {
    for (; taps > 0; taps -= chunk, x += DDQ_LANES, w += DDQ_LANES) {
        int8x16_t v = vld1q_s8(x), u = vld1q_s8(w);
        int16x8_t even = vmullbq_int_s8(v, u), odd = vmulltq_int_s8(v, u);
        for (int n = least(taps, chunk) - 1; n > 0; n--) {
            x += DDQ_LANES, w += DDQ_LANES;
            v = vld1q_s8(x), u = vld1q_s8(w);
            even = vaddq_s16(even, vmullbq_int_s8(v, u));
            odd = vaddq_s16(odd, vmulltq_int_s8(v, u));
        }
        s = widened(s, even, odd);
    }
    return s;
}

/* The same for chunks of two taps. Assembly because sixteen sums leave four registers: the second weights are read
 * twice, where compilers spill sums. */
static inline sums16 window_of_pairs(const int8_t *x, const int8_t *w, int taps, sums16 s) {
    int pairs = taps / 2;
    if (pairs > 0)
        __asm__ volatile("dls lr, %[n]\n"
                         "2:\n\t"
                         "vldrb.u8 q4, [%[x]], #16\n\tvldrb.u8 q5, [%[w]], #32\n\tvmullb.s8 q6, q4, q5\n\t"
                         "vldrb.u8 q7, [%[w], #-16]\n\tvmullt.s8 q4, q4, q5\n\tvldrb.u8 q5, [%[x]], #16\n\t"
                         "vmullb.s8 q7, q5, q7\n\tvadd.i16 q6, q6, q7\n\tvldrb.u8 q7, [%[w], #-16]\n\t"
                         "vmullt.s8 q5, q5, q7\n\tvadd.i16 q4, q4, q5\n\t"
                         "vmovlb.s16 q5, q6\n\tvadd.i32 %q[s0], %q[s0], q5\n\t"
                         "vmovlt.s16 q6, q6\n\tvadd.i32 %q[s1], %q[s1], q6\n\t"
                         "vmovlb.s16 q5, q4\n\tvadd.i32 %q[s2], %q[s2], q5\n\t"
                         "vmovlt.s16 q4, q4\n\tvadd.i32 %q[s3], %q[s3], q4\n\t"
                         "le lr, 2b"
                         : [x] "+r"(x), [w] "+r"(w), [s0] "+w"(s.lanes[0]), [s1] "+w"(s.lanes[1]),
                           [s2] "+w"(s.lanes[2]), [s3] "+w"(s.lanes[3])
                         : [n] "r"(pairs)
                         : "q4", "q5", "q6", "q7", "lr", "memory");
    if (taps % 2) {
        const int8x16_t v = vld1q_s8(x), u = vld1q_s8(w);
        s = widened(s, vmullbq_int_s8(v, u), vmulltq_int_s8(v, u));
    }
    return s;
}

static inline int32x4_t requantized(const int32_t *bias, sums16 s, int quarter, int rounding) {
    const int32_t *multiplier = bias + DDQ_LANES + 4 * quarter;
    return ddq_requantize4(s.lanes[quarter], vld1q_s32(multiplier), vld1q_s32(multiplier + DDQ_LANES),
                           vld1q_s32(multiplier + 2 * DDQ_LANES), rounding);
}

/* The codes of even channels, then those of odd channels, before they are clamped. */
static inline int16x8_t half(const int32_t *bias, sums16 s, int quarter, int rounding, int out_zero) {
    const int16x8_t low = vqmovnbq_s32(vuninitializedq_s16(), requantized(bias, s, quarter, rounding));
    return vqaddq_n_s16(vqmovntq_s32(low, requantized(bias, s, quarter + 1, rounding)), (int16_t)out_zero);
}

/* Where the codes of one row of outputs go: `stride` bytes from position to position. */
static inline __attribute__((always_inline)) void output_row(const block *b, uint8_t *to, int stride, const int pairs,
                                                             const int rounding) {
    const ddq_layer *l = b->layer;
    const mve_pred16_t lanes = vctp8q((uint32_t)b->count);
    const int8_t *x = b->rows, *weights = b->weights;
    const int32_t *bias = b->bias;
    const int step = b->step, taps = b->taps, chunk = b->chunk;
    const int out_zero = l->out_zero, low = l->low, high = l->high;
    for (int left = l->out_w; left > 0; left--, x += step, to += stride) {
        sums16 s = {{vld1q_s32(bias), vld1q_s32(bias + 4), vld1q_s32(bias + 8), vld1q_s32(bias + 12)}};
        s = pairs ? window_of_pairs(x, weights, taps, s) : window(x, weights, taps, chunk, s);
        uint8x16_t codes = vqmovunbq_s16(vuninitializedq_u8(), half(bias, s, 0, rounding, out_zero));
        codes = vqmovuntq_s16(codes, half(bias, s, 2, rounding, out_zero));
        codes = vminq_u8(vmaxq_u8(codes, vdupq_n_u8((uint8_t)low)), vdupq_n_u8((uint8_t)high));
        vst1q_p_u8(to, codes, lanes);
    }
}

static __attribute__((noinline)) void output_pairs(const block *b, uint8_t *to, int stride) {
    if (b->layer->rounding == DDQ_DOUBLE)
        output_row(b, to, stride, 1, DDQ_DOUBLE);
    else
        output_row(b, to, stride, 1, DDQ_SINGLE);
}

static __attribute__((noinline)) void output_chunks(const block *b, uint8_t *to, int stride) {
    if (b->layer->rounding == DDQ_DOUBLE)
        output_row(b, to, stride, 0, DDQ_DOUBLE);
    else
        output_row(b, to, stride, 0, DDQ_SINGLE);
}
#else
static void output_chunks(const block *b, uint8_t *to, int stride) {
    const ddq_layer *l = b->layer;
    for (int ox = 0; ox < l->out_w; ox++, to += stride)
        for (int lane = 0; lane < DDQ_LANES; lane++) {
            const int c = channel_of(lane);
            const int8_t *x = b->rows + ox * b->step + c;
            int32_t acc = b->bias[lane];
            int narrow = 0;
            for (int tap = 0; tap < b->taps && c < b->count; tap++) {
                narrow += b->weights[tap * DDQ_LANES + c] * x[tap * DDQ_LANES];
                if ((tap + 1) % b->chunk == 0 || tap + 1 == b->taps) {
                    acc += (int16_t)narrow;
                    narrow = 0;
                }
            }
            if (c < b->count)
                to[c] = ddq_code(l, acc, b->first + c);
        }
}

static void output_pairs(const block *b, uint8_t *to, int stride) { output_chunks(b, to, stride); }
#endif

/* Packs the codes of one row of outputs, the first at place `index` of the output. */
static __attribute__((noinline)) void pack_columns(const block *b, uint8_t *y, uint32_t index) {
    const int bits = b->layer->out_bits, depth = b->layer->out_c, count = b->count;
    const uint8_t *codes = b->codes;
    int columns = b->layer->out_w;
#if defined(__ARM_FEATURE_MVE)
    if ((depth | count) * bits % 8 == 0) {
        const mve_pred16_t lanes = vctp8q((uint32_t)count);
        uint8_t *to = y + index * (uint32_t)bits / 8;
        for (; columns > 0; columns--, codes += DDQ_LANES, to += depth * bits / 8)
            ddq_pack_lanes(to, codes, bits, lanes);
        return;
    }
#endif
    for (; columns > 0; columns--, codes += DDQ_LANES, index += (uint32_t)depth)
        ddq_pack(y, index, codes, count, bits);
}

static void output_rows(const block *b, const uint8_t *x, uint8_t *y) {
    const ddq_layer *l = b->layer;
    const int whole = l->out_bits == 8;
    for (int oy = 0; oy < l->out_h; oy++) {
        copy_rows(b, x, oy);
        const uint32_t index = (uint32_t)(oy * l->out_w) * l->out_c + (uint32_t)b->first;
        uint8_t *to = whole ? y + index : b->codes;
        const int stride = whole ? l->out_c : DDQ_LANES;
        if (b->chunk == 2)
            output_pairs(b, to, stride);
        else
            output_chunks(b, to, stride);
        if (!whole)
            pack_columns(b, y, index);
    }
}

static void depthwise(const ddq_layer *l, const uint8_t *x, uint8_t *y, uint8_t *scratch, int bits, int chunk) {
    const int taps = l->kernel_h * l->kernel_w, apart = l->dilation_w > 1, stride = apart ? l->kernel_w : l->stride_w;
    const int width = (l->out_w - 1) * stride + l->kernel_w;
    int32_t *bias = (int32_t *)(void *)scratch;
    int8_t *weights = (int8_t *)(bias + PARAMETERS), *rows = weights + ((taps + 3) & ~3) * DDQ_LANES;
    const int column = l->kernel_h * DDQ_LANES;
    block b = {l, 0, 0, taps, chunk, width, stride * column, bias, weights, rows, (uint8_t *)rows + width * column};
    for (; b.first < l->out_c; b.first += DDQ_LANES) {
        b.count = least(DDQ_LANES, l->out_c - b.first);
        prepare_parameters(&b);
        prepare_weights(&b, bits);
        output_rows(&b, x, y);
    }
}

void ddq_helium_depthwise_w8(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    depthwise(layer, x, y, scratch, 8, 2);
}

void ddq_helium_depthwise_w4(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    depthwise(layer, x, y, scratch, 4, 36);
}

void ddq_helium_depthwise_w2(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    depthwise(layer, x, y, scratch, 2, 255);
}
