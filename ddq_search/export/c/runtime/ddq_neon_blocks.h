/* The inner loops of the tiles without dot product, in assembly: six positions x four channels leave no register free,
 * which compilers answer with spills. What they compute is what ddq_half_block, ddq_byte_block and ddq_wide_block of
 * ddq_neon_tiles.h compute with intrinsics; those run wherever there is no AArch64 assembler.
 *
 * x: steps of 16 codes of each position, w: steps of 16 codes of each channel, sum: [position][4 channels].
 */
#ifndef DDQ_NEON_BLOCKS_H
#define DDQ_NEON_BLOCKS_H

#include "ddq_neon_vectors.h"

#if DDQ_NEON && defined(__GNUC__)
#define DDQ_ASSEMBLY 1

#define DDQ_CLOBBERED                                                                                                  \
    "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16",       \
        "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31",       \
        "cc", "memory"

/* One instruction per channel: accumulators a, b, c, d of a position whose codes are in register x. */
#define DDQ_ROW(op, to, from, a, b, c, d, x)                                                                           \
    #op " v" #a "." #to ", v0." #from ", v" #x "." #from "\n" #op " v" #b "." #to ", v1." #from ", v" #x "." #from     \
    "\n" #op " v" #c "." #to ", v2." #from ", v" #x "." #from "\n" #op " v" #d "." #to ", v3." #from ", v" #x "."      \
    #from "\n"

/* A step of six positions: loads of the third pair of positions wait for the registers of the first. */
#define DDQ_SIX(first, second, third)                                                                                  \
    "ldp q4, q5, [%[x]]\n ldp q0, q1, [%[w]]\n ldp q2, q3, [%[w], #32]\n ldp q6, q7, [%[x], #32]\n"                    \
    "add %[w], %[w], #64\n add %[x], %[x], #96\n" first "ldp q4, q5, [%[x], #-32]\n" second third

#define DDQ_HALF_ROWS(low, a, b, c, d, e, f, g, h, x, y)                                                               \
    DDQ_ROW(low, 8h, 8b, a, b, c, d, x)                                                                                \
    DDQ_ROW(low, 8h, 8b, e, f, g, h, y)                                                                                \
    DDQ_ROW(smlal2, 8h, 16b, a, b, c, d, x)                                                                            \
    DDQ_ROW(smlal2, 8h, 16b, e, f, g, h, y)
#define DDQ_HALF_STEP(low)                                                                                             \
    DDQ_SIX(DDQ_HALF_ROWS(low, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5),                                                    \
            DDQ_HALF_ROWS(low, 16, 17, 18, 19, 20, 21, 22, 23, 6, 7),                                                  \
            DDQ_HALF_ROWS(low, 24, 25, 26, 27, 28, 29, 30, 31, 4, 5))

#define DDQ_BYTE_ROWS(op, a, b, c, d, e, f, g, h, x, y)                                                                \
    DDQ_ROW(op, 16b, 16b, a, b, c, d, x) DDQ_ROW(op, 16b, 16b, e, f, g, h, y)
#define DDQ_BYTE_STEP(op)                                                                                              \
    DDQ_SIX(DDQ_BYTE_ROWS(op, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5),                                                     \
            DDQ_BYTE_ROWS(op, 16, 17, 18, 19, 20, 21, 22, 23, 6, 7),                                                   \
            DDQ_BYTE_ROWS(op, 24, 25, 26, 27, 28, 29, 30, 31, 4, 5))

/* First step, then an odd one, then pairs; n: steps after the first. */
#define DDQ_STEPS(first, step)                                                                                         \
    first "tbz %w[n], #0, 1f\n" step "1: lsr %w[n], %w[n], #1\n cbz %w[n], 3f\n"                                       \
          "2: sub %w[n], %w[n], #1\n" step step "cbnz %w[n], 2b\n 3:\n"

/* First step, then one and two where the rest is not fours, then fours. */
#define DDQ_FOURS(first, step)                                                                                         \
    first "tbz %w[n], #0, 1f\n" step "1: tbz %w[n], #1, 2f\n" step step                                               \
          "2: lsr %w[n], %w[n], #2\n cbz %w[n], 4f\n"                                                                 \
          "3: sub %w[n], %w[n], #1\n" step step step step "cbnz %w[n], 3b\n 4:\n"

#define DDQ_EACH(op, to, from, a, b, c, d)                                                                             \
    #op " v" #a "." #to ", v" #a "." #from "\n" #op " v" #b "." #to ", v" #b "." #from "\n" #op " v" #c "." #to        \
    ", v" #c "." #from "\n" #op " v" #d "." #to ", v" #d "." #from "\n"
#define DDQ_EACH_SIX(op, to, from)                                                                                     \
    DDQ_EACH(op, to, from, 8, 9, 10, 11)                                                                               \
    DDQ_EACH(op, to, from, 12, 13, 14, 15)                                                                             \
    DDQ_EACH(op, to, from, 16, 17, 18, 19)                                                                             \
    DDQ_EACH(op, to, from, 20, 21, 22, 23)                                                                             \
    DDQ_EACH(op, to, from, 24, 25, 26, 27)                                                                             \
    DDQ_EACH(op, to, from, 28, 29, 30, 31)
#define DDQ_ADD(to, a, b, type) "addp v" #to "." #type ", v" #a "." #type ", v" #b "." #type "\n"
/* Six positions' four vectors into v0 … v5. */
#define DDQ_ADD_SIX(type)                                                                                              \
    DDQ_ADD(8, 8, 9, type) DDQ_ADD(10, 10, 11, type) DDQ_ADD(12, 12, 13, type) DDQ_ADD(14, 14, 15, type)               \
    DDQ_ADD(16, 16, 17, type) DDQ_ADD(18, 18, 19, type) DDQ_ADD(20, 20, 21, type) DDQ_ADD(22, 22, 23, type)            \
    DDQ_ADD(24, 24, 25, type) DDQ_ADD(26, 26, 27, type) DDQ_ADD(28, 28, 29, type) DDQ_ADD(30, 30, 31, type)            \
    DDQ_ADD(0, 8, 10, type) DDQ_ADD(1, 12, 14, type) DDQ_ADD(2, 16, 18, type) DDQ_ADD(3, 20, 22, type)                 \
    DDQ_ADD(4, 24, 26, type) DDQ_ADD(5, 28, 30, type)
#define DDQ_WIDEN "saddlp v0.4s, v0.8h\n saddlp v1.4s, v1.8h\n saddlp v2.4s, v2.8h\n"                                  \
                  "saddlp v3.4s, v3.8h\n saddlp v4.4s, v4.8h\n saddlp v5.4s, v5.8h\n"
#define DDQ_NARROW "saddlp v0.8h, v0.16b\n saddlp v1.8h, v1.16b\n saddlp v2.8h, v2.16b\n"                              \
                   "saddlp v3.8h, v3.16b\n saddlp v4.8h, v4.16b\n saddlp v5.8h, v5.16b\n"
#define DDQ_STORE_SIX "stp q0, q1, [%[sum]]\n stp q2, q3, [%[sum], #32]\n stp q4, q5, [%[sum], #64]\n"

static inline void ddq_half_block(int32_t *sum, const int8_t *x, const int8_t *w, int steps) {
    int n = steps - 1;
    __asm__ volatile(DDQ_FOURS(DDQ_HALF_STEP(smull), DDQ_HALF_STEP(smlal)) DDQ_EACH_SIX(saddlp, 4s, 8h)
                         DDQ_ADD_SIX(4s) DDQ_STORE_SIX
                     : [x] "+r"(x), [w] "+r"(w), [n] "+r"(n)
                     : [sum] "r"(sum)
                     : DDQ_CLOBBERED);
}

/* Where four lanes together still fit one (`few`), they are added up before they are widened. */
static inline void ddq_byte_block(int32_t *sum, const int8_t *x, const int8_t *w, int steps, int block) {
    const int few = 4 * steps <= block;
    int n = steps - 1;
    __asm__ volatile(DDQ_FOURS(DDQ_BYTE_STEP(mul), DDQ_BYTE_STEP(mla)) "cbz %w[few], 5f\n" DDQ_ADD_SIX(16b)
                         DDQ_NARROW "b 6f\n 5:\n" DDQ_EACH_SIX(saddlp, 8h, 16b) DDQ_ADD_SIX(8h) "6:\n" DDQ_WIDEN
                             DDQ_STORE_SIX
                     : [x] "+r"(x), [w] "+r"(w), [n] "+r"(n)
                     : [sum] "r"(sum), [few] "r"(few)
                     : DDQ_CLOBBERED);
}

/* Four positions; accumulators v16 … v31 [channel][position], products v6 … v13, codes v0 … v3. */
#define DDQ_PRODUCTS(op, from, w, a, b, c, d)                                                                          \
    #op " v" #a ".8h, v" #w "." #from ", v0." #from "\n" #op " v" #b ".8h, v" #w "." #from ", v1." #from "\n" #op      \
    " v" #c ".8h, v" #w "." #from ", v2." #from "\n" #op " v" #d ".8h, v" #w "." #from ", v3." #from "\n"
#define DDQ_PAIR(w, v)                                                                                                 \
    DDQ_PRODUCTS(smull, 8b, w, 6, 7, 8, 9)                                                                             \
    DDQ_PRODUCTS(smull, 8b, v, 10, 11, 12, 13)                                                                         \
    DDQ_PRODUCTS(smlal2, 16b, w, 6, 7, 8, 9)                                                                           \
    DDQ_PRODUCTS(smlal2, 16b, v, 10, 11, 12, 13)
#define DDQ_INTO(op, a, b, c, d, p, q, r, s)                                                                           \
    #op " v" #a ".4s, v" #p ".8h\n" #op " v" #b ".4s, v" #q ".8h\n" #op " v" #c ".4s, v" #r ".8h\n" #op " v" #d        \
    ".4s, v" #s ".8h\n"
#define DDQ_WIDE_STEP(op)                                                                                              \
    "ldp q0, q1, [%[x]]\n ldp q4, q5, [%[w]]\n ldp q2, q3, [%[x], #32]\n ldp q14, q15, [%[w], #32]\n"                  \
    "add %[x], %[x], #64\n add %[w], %[w], #64\n" DDQ_PAIR(4, 5) DDQ_INTO(op, 16, 17, 18, 19, 6, 7, 8, 9)              \
    DDQ_INTO(op, 20, 21, 22, 23, 10, 11, 12, 13) DDQ_PAIR(14, 15) DDQ_INTO(op, 24, 25, 26, 27, 6, 7, 8, 9)             \
    DDQ_INTO(op, 28, 29, 30, 31, 10, 11, 12, 13)
#define DDQ_ADD_FOUR                                                                                                   \
    DDQ_ADD(16, 16, 20, 4s) DDQ_ADD(17, 17, 21, 4s) DDQ_ADD(18, 18, 22, 4s) DDQ_ADD(19, 19, 23, 4s)                    \
    DDQ_ADD(24, 24, 28, 4s) DDQ_ADD(25, 25, 29, 4s) DDQ_ADD(26, 26, 30, 4s) DDQ_ADD(27, 27, 31, 4s)                    \
    DDQ_ADD(0, 16, 24, 4s) DDQ_ADD(1, 17, 25, 4s) DDQ_ADD(2, 18, 26, 4s) DDQ_ADD(3, 19, 27, 4s)

static inline void ddq_wide_block(int32_t *sum, const int8_t *x, const int8_t *w, int steps) {
    int n = steps - 1;
    __asm__ volatile(DDQ_STEPS(DDQ_WIDE_STEP(saddlp), DDQ_WIDE_STEP(sadalp)) DDQ_ADD_FOUR
                     "stp q0, q1, [%[sum]]\n stp q2, q3, [%[sum], #32]\n"
                     : [x] "+r"(x), [w] "+r"(w), [n] "+r"(n)
                     : [sum] "r"(sum)
                     : DDQ_CLOBBERED);
}

#else
#define DDQ_ASSEMBLY 0
#endif

#endif
