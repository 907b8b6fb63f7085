/* Dot products of the Cortex-M DSP kernels: one or two output channels with the columns of one or two positions.
 *
 * Weights of a pair of channels come quad by quad of the column (ddq_dsp_columns.h), those of the first channel before
 * those of the second; a channel without partner has its quads one after the other. Lanes pair (k, k + 2), (k + 1, k + 3).
 *
 *   8 bits: a word holds the quad of one channel, bytes k, k + 1, k + 2, k + 3, taken apart by SXTB16.
 *   4 bits: a word holds two quads of codes + 8; quad u has its lanes at the bits 8 u and 8 u + 16, first (k, k + 2),
 *           four bits higher (k + 1, k + 3).
 *   2 bits: a word holds four quads of codes + 2; quad u has its lanes at the bits 4 u and 4 u + 16, then two higher.
 *
 * One AND with a shifted operand so makes a pair of lanes. What the added 8 or 2 contributes, that times the sum of the
 * column's codes, is subtracted beforehand. What fills no word (or, in a pair of 2-bit channels, no word of eight codes
 * each) follows in plain order, channel after channel.
 */
#ifndef DDQ_DSP_DOT_H
#define DDQ_DSP_DOT_H

#include "ddq_dsp.h"
#include "ddq_dsp_columns.h"

/* acc[position] += weights, as two pairs of lanes, times the quad x of each position. */
DDQ_DSP_INLINE void ddq_dsp_quad(int32_t *acc, uint32_t even, uint32_t odd, const uint32_t *x, int positions) {
    acc[0] = ddq_dsp_smlad(odd, x[1], ddq_dsp_smlad(even, x[0], acc[0]));
    if (positions == 2)
        acc[1] = ddq_dsp_smlad(odd, x[3], ddq_dsp_smlad(even, x[2], acc[1]));
}

/* A quad of `count` codes in plain order, arranged as in a word of its width. */
DDQ_DSP_INLINE uint32_t ddq_dsp_plain_quad(const uint8_t *w, int count, int bits) {
    if (bits == 8)
        return count > 3 ? ddq_dsp_word(w)
                         : w[0] | (count > 1 ? (uint32_t)w[1] << 8 : 0) | (count > 2 ? (uint32_t)w[2] << 16 : 0);
    if (bits == 4) {
        const uint32_t codes = count > 2 ? ddq_dsp_half(w) : w[0];
        return codes | codes << 8;
    }
    return w[0] | (uint32_t)w[0] << 12;
}

DDQ_DSP_INLINE void ddq_dsp_quad_of(int32_t *acc, uint32_t word, const uint32_t *x, int bits, int positions) {
    if (bits == 8)
        ddq_dsp_quad(acc, ddq_dsp_sxtb16(word), ddq_dsp_sxtb16_odd(word), x, positions);
    else if (bits == 4)
        ddq_dsp_quad(acc, word & 0x000F000F, word >> 4 & 0x000F000F, x, positions);
    else
        ddq_dsp_quad(acc, word & 0x00030003, word >> 2 & 0x00030003, x, positions);
}

/* Adds the products of one channel's `rest` last codes in plain order. */
DDQ_DSP_INLINE void ddq_dsp_rest(const uint8_t *w, const uint32_t *x, int rest, int32_t *acc, int bits, int positions) {
    for (int k = 0; k < rest; k += 4, x += DDQ_DSP_PITCH)
        ddq_dsp_quad_of(acc, ddq_dsp_plain_quad(w + k * bits / 8, rest - k, bits), x, bits, positions);
}

#if DDQ_DSP_LOOPS

/* The loops: a b are the sums of the first channel, c d of the second, a c of the first position, b d of the second;
 * x0 x1 and x2 x3 are their quads, u and t weights, m the mask of a pair of lanes. */
#define DDQ_DSP_LOAD_2 "ldrd %[x2], %[x3], [%[x], #8]\n\tldrd %[x0], %[x1], [%[x]], #16\n\t"
#define DDQ_DSP_LOAD_1 "ldrd %[x0], %[x1], [%[x]], #16\n\t"
#define DDQ_DSP_MAC_2(w, first, second, x0, x1)                                                                        \
    "smlad %[" first "], %[" w "], %[" x0 "], %[" first "]\n\t"                                                        \
    "smlad %[" second "], %[" w "], %[" x1 "], %[" second "]\n\t"
#define DDQ_DSP_MAC_1(w, first, second, x0, x1) "smlad %[" first "], %[" w "], %[" x0 "], %[" first "]\n\t"

#define DDQ_DSP_CHANNEL_8(mac, first, second)                                                                          \
    "ldr %[u], [%[w]], #4\n\tsxtb16 %[t], %[u]\n\tsxtb16 %[u], %[u], ror #8\n\t" mac("t", first, second, "x0", "x2") \
        mac("u", first, second, "x1", "x3")
#define DDQ_DSP_QUAD_8(load, mac) load DDQ_DSP_CHANNEL_8(mac, "a", "b") DDQ_DSP_CHANNEL_8(mac, "c", "d")

#define DDQ_DSP_LOAD_W "ldr %[u], [%[w]], #4\n\t"
#define DDQ_DSP_LANES_AT_0 "and %[t], %[m], %[u]\n\t"
#define DDQ_DSP_LANES(shift) "and %[t], %[m], %[u], lsr #" shift "\n\t"
#define DDQ_DSP_LANES_4(mac, lanes, s1, s2, s3)                                                                        \
    lanes mac("t", "a", "b", "x0", "x2") DDQ_DSP_LANES(s1) mac("t", "a", "b", "x1", "x3")                              \
        DDQ_DSP_LANES(s2) mac("t", "c", "d", "x0", "x2") DDQ_DSP_LANES(s3) mac("t", "c", "d", "x1", "x3")
#define DDQ_DSP_QUAD_4(load, mac) DDQ_DSP_LOAD_W load DDQ_DSP_LANES_4(mac, DDQ_DSP_LANES_AT_0, "4", "8", "12")
#define DDQ_DSP_TWO_QUADS_2(load, mac)                                                                                 \
    DDQ_DSP_LOAD_W load DDQ_DSP_LANES_4(mac, DDQ_DSP_LANES_AT_0, "2", "4", "6")                                        \
        load DDQ_DSP_LANES_4(mac, DDQ_DSP_LANES("8"), "10", "12", "14")

/* n quads, two per turn; n turns. */
#define DDQ_DSP_BY_TWO(quad)                                                                                           \
    "lsrs %[n], %[n], #1\n\tbcc 2f\n\t" quad "2:\n\tbeq 3f\n\t1:\n\t" quad quad                                     \
    "subs %[n], %[n], #1\n\tbne 1b\n\t3:\n\t"
#define DDQ_DSP_BY_ONE(turn) "1:\n\t" turn "subs %[n], %[n], #1\n\tbne 1b\n\t"

#define DDQ_DSP_RUN_2(code, mask)                                                                                      \
    __asm__ volatile(code                                                                                              \
                     : [a] "+r"(acc[0]), [b] "+r"(acc[1]), [c] "+r"(acc[2]), [d] "+r"(acc[3]), [w] "+r"(w),            \
                       [x] "+r"(x), [n] "+r"(n), [t] "=&r"(t), [u] "=&r"(u), [x0] "=&r"(x0), [x1] "=&r"(x1),           \
                       [x2] "=&r"(x2), [x3] "=&r"(x3)                                                                  \
                     : [m] mask                                                                                        \
                     : "cc", "memory")
#define DDQ_DSP_RUN_1(code, mask)                                                                                      \
    __asm__ volatile(code                                                                                              \
                     : [a] "+r"(acc[0]), [c] "+r"(acc[2]), [w] "+r"(w), [x] "+r"(x), [n] "+r"(n), [t] "=&r"(t),        \
                       [u] "=&r"(u), [x0] "=&r"(x0), [x1] "=&r"(x1)                                                    \
                     : [m] mask                                                                                        \
                     : "cc", "memory")
#define DDQ_DSP_RUN(by, step, mask)                                                                                    \
    do {                                                                                                               \
        uint32_t t, u, x0, x1, x2, x3;                                                                                 \
        if (positions == 2)                                                                                            \
            DDQ_DSP_RUN_2(by(step(DDQ_DSP_LOAD_2, DDQ_DSP_MAC_2)), mask);                                              \
        else                                                                                                           \
            DDQ_DSP_RUN_1(by(step(DDQ_DSP_LOAD_1, DDQ_DSP_MAC_1)), mask);                                              \
    } while (0)

#endif

/* Adds the products of two channels with the columns x to acc[2 * channel + position]; returns the weights after
 * theirs. `length` is K; `bits` and `positions` are constants. */
DDQ_DSP_INLINE const uint8_t *ddq_dsp_dot_pair(const uint8_t *w, const uint32_t *x, int length, int32_t *acc, int bits,
                                              int positions) {
    const int step = bits == 2 ? 8 : 4, rest = length & (step - 1), rest_bytes = (rest * bits + 7) >> 3;
    int n = length / step;
#if DDQ_DSP_LOOPS
    if (n && bits == 8)
        DDQ_DSP_RUN(DDQ_DSP_BY_TWO, DDQ_DSP_QUAD_8, "i"(0));
    else if (n && bits == 4)
        DDQ_DSP_RUN(DDQ_DSP_BY_TWO, DDQ_DSP_QUAD_4, "r"(0x000F000F));
    else if (n)
        DDQ_DSP_RUN(DDQ_DSP_BY_ONE, DDQ_DSP_TWO_QUADS_2, "r"(0x00030003));
#else
    for (; n > 0; n--, x += DDQ_DSP_PITCH * step / 4)
        for (int unit = 0; unit < (bits == 2 ? 4 : 2); unit++) {
            const uint32_t word = ddq_dsp_word(w) >> (bits == 8 ? 0 : unit * 2 * bits);
            ddq_dsp_quad_of(acc + 2 * (unit & 1), word, x + DDQ_DSP_PITCH * (unit >> 1), bits, positions);
            w += bits == 8 || unit == (bits == 4 ? 1 : 3) ? 4 : 0;
        }
#endif
    if (rest) {
        ddq_dsp_rest(w, x, rest, acc, bits, positions);
        ddq_dsp_rest(w + rest_bytes, x, rest, acc + 2, bits, positions);
        w += 2 * rest_bytes;
    }
    return w;
}

/* The same for one channel without partner. */
DDQ_DSP_INLINE const uint8_t *ddq_dsp_dot_single(const uint8_t *w, const uint32_t *x, int length, int32_t *acc, int bits,
                                                int positions) {
    const int step = 32 / bits, rest = length & (step - 1);
    for (int n = length / step; n > 0; n--, w += 4)
        for (int unit = 0; unit < step; unit += 4, x += DDQ_DSP_PITCH)
            ddq_dsp_quad_of(acc, ddq_dsp_word(w) >> (unit * bits / 2), x, bits, positions);
    ddq_dsp_rest(w, x, rest, acc, bits, positions);
    return w + ((rest * bits + 7) >> 3);
}

#endif
