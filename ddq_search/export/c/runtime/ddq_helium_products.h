/* Products of rows of weights with columns of int8 codes, the inner loops of ddq_helium_conv.c.
 *
 * Layout of a row: blocks of 16 bytes. Of 4-bit codes a block holds 32: byte j code j in its low half and code 16 + j
 * in its high half; of 2-bit codes 64: byte j codes j, 16 + j, 32 + j and 48 + j from the lowest bits up. A last block
 * that has n codes left takes h = ceil(n / codes per byte) bytes: byte j holds codes j, h + j, …. If h is at most 8 it
 * is a half block: byte j holds 4-bit codes 2 j and 2 j + 1, or 2-bit codes 2 j, 2 j + 1, 2 h + 2 j and 2 h + 2 j + 1,
 * since 8 bytes widened to 16 lanes give two fields at a time. `spread` moves a column's last codes to match, so that
 * tail-predicated loops read exactly the bytes of a row.
 *
 * 4- and 2-bit codes are multiplied in the high bits of their byte, which scales sums by 16 and 64: one shift or mask
 * per vector instead of two shifts. Sums are int32: K * 127 * 128 (8 bits), K * 16 * 7 * 128 (4 bits) and K * 64 * 128
 * (2 bits) must stay below 2^31.
 *
 * Sums lie in pairs of channels, [ceil(rows / 2)][columns][2]. The loops are assembly because six sums, five pointers
 * and the loop counter leave one register (r7, which compilers keep) and sums must be in even ones.
 */
#ifndef DDQ_HELIUM_PRODUCTS_H
#define DDQ_HELIUM_PRODUCTS_H

#include "ddq_helium.h"

enum { PIXELS = 3 };

/* Bytes of a row's last block if it is a half block, otherwise 0. */
static inline int half_block(int row_bytes, int bits) {
    const int left = row_bytes % DDQ_LANES;
    return bits == 8 || left > DDQ_LANES / 2 ? 0 : left;
}

/* How the loops read a column's last codes in another order than the window's. */
typedef struct {
    int from;  /* the first of them */
    int taken; /* codes of the first vector; those of the next ones follow */
    int moves; /* vectors that do not lie where they are read */
} spreading;

static inline spreading spread_of(int k, int bits) {
    const int per_byte = 8 / bits, n = k % (DDQ_LANES * per_byte), h = (n + per_byte - 1) / per_byte;
    const int half = h <= DDQ_LANES / 2;
    return (spreading){k - n, half ? 2 * h : h, bits == 8 || n == 0 ? 0 : half ? per_byte / 2 - 1 : per_byte - 1};
}

/* Moves the codes of a column's last block to where the loops read them. */
static inline void spread(int8_t *column, const spreading *s) {
    column += s->from;
    for (int vector = s->moves; vector > 0; vector--) {
#if defined(__ARM_FEATURE_MVE)
        vst1q_s8(column + vector * DDQ_LANES, vld1q_s8(column + vector * s->taken));
#else
        for (int j = s->taken - 1; j >= 0; j--)
            column[vector * DDQ_LANES + j] = column[vector * s->taken + j];
#endif
    }
}

/* Rows of weights times columns until `sums` reaches `end`; the assembly knows the offsets of the fields. */
typedef struct {
    const int8_t *column[PIXELS];
    int step;        /* bytes from a row of weights to the next; 0 repeats the row */
    int whole_bytes; /* of a row before its half block */
    int overshoot;   /* bytes that pointers of whole vectors move past a row */
    int32_t *sums;
    const int32_t *end;
    int second, third; /* of four rows: bytes from the second to the third, from the third to the fourth */
    int half_bytes;
    int row_bytes;
} products_job;

typedef void product_rows(const uint8_t *row, products_job *job);

#if defined(__ARM_FEATURE_MVE)
/* q7: mask of the highest code of a byte; q5, q6: shifts that bring other codes of even and odd bytes there. */
#define CONSTANTS(mask, first, second)                                                                                 \
    "vmov.i8 q7, #" mask "\n\tmovw r0, #" first "\n\tvdup.16 q5, r0\n\tmovw r0, #" second "\n\tvdup.16 q6, r0\n"
#define CONSTANTS4 CONSTANTS("240", "0x0004", "0")
#define CONSTANTS2 CONSTANTS("192", "0x0406", "0x0002")
/* A loop over whole vectors, then the half block: its bytes widen to pairs of the same byte. */
#define LOOPS(whole, half)                                                                                             \
    "wlstp.8 lr, lr, 4f\n"                                                                                             \
    "2:\n\t" whole "letp lr, 2b\n"                                                                                     \
    "4:\n\tldr lr, [r12, #40]\n\twlstp.16 lr, lr, 6f\n"                                                               \
    "5:\n\t" half "letp lr, 5b\n"                                                                                      \
    "6:\n\t"
#define LOOP(whole) "dlstp.8 lr, lr\n2:\n\t" whole "letp lr, 2b\n\t"
#define TWICE(to, from) "vldrb.u16 " to ", [" from "], #8\n\tvsli.16 " to ", " to ", #8\n\t"
#define TOP(to, from, by) "vshl.s8 " to ", " from ", " by "\n\tvand " to ", " to ", q7\n\t"

/* r12 job; r1, r3 weights; r5, r9, r11 columns; r0, r4, r8 sums of the first row, r2, r6, r10 of the second. */
#define STEP3(w, v, a, b, c)                                                                                           \
    "vldrb.u8 " a ", [r5], #16\n\tvmladava.s8 r0, " w ", " a "\n\tvmladava.s8 r2, " v ", " a "\n\t"                     \
    "vldrb.u8 " b ", [r9], #16\n\tvmladava.s8 r4, " w ", " b "\n\tvmladava.s8 r6, " v ", " b "\n\t"                     \
    "vldrb.u8 " c ", [r11], #16\n\tvmladava.s8 r8, " w ", " c "\n\tvmladava.s8 r10, " v ", " c "\n\t"
#define LOAD3 "vldrb.u8 q0, [r1], #16\n\tvldrb.u8 q1, [r3], #16\n\t"
#define SHIFT3(n) "vshl.i8 q2, q0, #" #n "\n\tvshl.i8 q3, q1, #" #n "\n\t"
#define MASK3(a, b) "vand " a ", " a ", q7\n\tvand " b ", " b ", q7\n\t"
#define NEXT3(w, v) STEP3(w, v, "q4", "q4", "q4")
#define WHOLE3_W8 LOAD3 STEP3("q0", "q1", "q4", "q5", "q6")
#define WHOLE3_W4 LOAD3 SHIFT3(4) NEXT3("q2", "q3") MASK3("q0", "q1") NEXT3("q0", "q1")
#define WHOLE3_W2                                                                                                      \
    LOAD3 SHIFT3(6) NEXT3("q2", "q3") SHIFT3(4) MASK3("q2", "q3") NEXT3("q2", "q3")                                    \
    SHIFT3(2) MASK3("q2", "q3") NEXT3("q2", "q3") MASK3("q0", "q1") NEXT3("q0", "q1")
#define HALF3_W4 TWICE("q0", "r1") TWICE("q1", "r3") TOP("q0", "q0", "q5") TOP("q1", "q1", "q5") NEXT3("q0", "q1")
#define HALF3_W2                                                                                                       \
    TWICE("q0", "r1") TWICE("q1", "r3") TOP("q2", "q0", "q5") TOP("q3", "q1", "q5") NEXT3("q2", "q3")                  \
    TOP("q0", "q0", "q6") TOP("q1", "q1", "q6") NEXT3("q0", "q1")
#define ROWS3(constants, loops)                                                                                        \
    constants                                                                                                          \
    "3:\n\tldrd r5, r9, [r12]\n\tldrd r11, r3, [r12, #8]\n\tldr lr, [r12, #16]\n\t"                                    \
    "movs r0, #0\n\tmovs r2, #0\n\tmovs r4, #0\n\tmovs r6, #0\n\tmov r8, #0\n\tmov r10, #0\n\tadd r3, r1\n\t"            \
    loops                                                                                                              \
    "ldrd lr, r5, [r12, #20]\n\tsub r1, r3, lr\n\tstm r5!, {r0, r2, r4, r6, r8, r10}\n\t"                              \
    "ldr lr, [r12, #28]\n\tstr r5, [r12, #24]\n\tcmp r5, lr\n\tbne 3b"

/* r12 job; r1, r3, r5, r9 weights; r11 column; r0, r2, r4, r6 sums; r8 their place; r10 step. */
#define STEP1(w, sum) "vmladava.s8 " sum ", " w ", q4\n\t"
#define COLUMN1 "vldrb.u8 q4, [r11], #16\n\t"
#define LOAD1                                                                                                          \
    "vldrb.u8 q0, [r1], #16\n\tvldrb.u8 q1, [r3], #16\n\tvldrb.u8 q2, [r5], #16\n\tvldrb.u8 q3, [r9], #16\n\t"
#define WHOLE1_W8 LOAD1 COLUMN1 STEP1("q0", "r0") STEP1("q1", "r2") STEP1("q2", "r4") STEP1("q3", "r6")
#define TOP1(w, sum) "vand " w ", " w ", q7\n\t" STEP1(w, sum)
#define TOPS1 COLUMN1 TOP1("q0", "r0") TOP1("q1", "r2") TOP1("q2", "r4") TOP1("q3", "r6")
#define LOW1(n, w, sum) "vshl.i8 q6, " w ", #" n "\n\t" STEP1("q6", sum)
#define LOWS1(n) COLUMN1 LOW1(n, "q0", "r0") LOW1(n, "q1", "r2") LOW1(n, "q2", "r4") LOW1(n, "q3", "r6")
#define MID1(n, w, sum) "vshl.i8 q6, " w ", #" n "\n\tvand q6, q6, q7\n\t" STEP1("q6", sum)
#define MIDS1(n) COLUMN1 MID1(n, "q0", "r0") MID1(n, "q1", "r2") MID1(n, "q2", "r4") MID1(n, "q3", "r6")
/* Loads that widen take only low registers. */
#define LAST1 "mov r5, r9\n\tadd r9, r9, #8\n\t"
#define HALF1(row, sum) TWICE("q0", row) TOP("q0", "q0", "q5") STEP1("q0", sum)
#define HALF1_W4 COLUMN1 HALF1("r1", "r0") HALF1("r3", "r2") HALF1("r5", "r4") LAST1 HALF1("r5", "r6")
/* The second codes of even and odd bytes are two places above the first ones: q3 holds the column's next codes. */
#define HALVES1(row, sum)                                                                                              \
    TWICE("q0", row) TOP("q1", "q0", "q5") STEP1("q1", sum)                                                            \
    "vshr.u8 q0, q0, #4\n\t" TOP("q1", "q0", "q5") "vmladava.s8 " sum ", q1, q3\n\t"
#define HALF1_W2                                                                                                       \
    COLUMN1 "vldrb.u8 q3, [r11], #16\n\t" HALVES1("r1", "r0") HALVES1("r3", "r2") HALVES1("r5", "r4")                 \
    LAST1 HALVES1("r5", "r6")
#define ROWS1(constants, loops)                                                                                        \
    constants "ldr r8, [r12, #24]\n\tldr r10, [r12, #12]\n"                                                           \
    "3:\n\tldr r11, [r12]\n\tldr lr, [r12, #16]\n\tldrd r0, r2, [r12, #32]\n\t"                                       \
    "add r3, r1, r10\n\tadd r5, r3, r0\n\tadd r9, r5, r2\n\t"                                                         \
    "movs r0, #0\n\tmovs r2, #0\n\tmovs r4, #0\n\tmovs r6, #0\n\t"                                                   \
    loops                                                                                                              \
    "ldrd r3, r5, [r12, #20]\n\tldr lr, [r12, #28]\n\tsub r1, r9, r3\n\tstm r8!, {r0, r2, r4, r6}\n\t"                \
    "cmp r8, lr\n\tbne 3b"

#define CLOBBERED                                                                                                      \
    "r0", "r2", "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "lr", "q0", "q1", "q2", "q3", "q4", "q5", "q6",      \
        "q7", "cc", "memory"

/* A function that runs `text` over the rows of a job. */
#define PRODUCT_ROWS(name, text)                                                                                       \
    static __attribute__((noinline)) void name(const uint8_t *row, products_job *job) {                                \
        register products_job *r12 __asm__("r12") = job;                                                               \
        register const uint8_t *r1 __asm__("r1") = row;                                                                \
        __asm__ volatile(text : "+r"(r1) : "r"(r12) : CLOBBERED);                                                      \
    }

PRODUCT_ROWS(rows3_w8, ROWS3("", LOOP(WHOLE3_W8)))
PRODUCT_ROWS(rows3_w4, ROWS3(CONSTANTS4, LOOPS(WHOLE3_W4, HALF3_W4)))
PRODUCT_ROWS(rows3_w2, ROWS3(CONSTANTS2, LOOPS(WHOLE3_W2, HALF3_W2)))
PRODUCT_ROWS(rows1_w8, ROWS1("", LOOP(WHOLE1_W8)))
PRODUCT_ROWS(rows1_w4, ROWS1(CONSTANTS4, LOOPS(LOAD1 LOWS1("4") TOPS1, HALF1_W4)))
PRODUCT_ROWS(rows1_w2, ROWS1(CONSTANTS2, LOOPS(LOAD1 LOWS1("6") MIDS1("4") MIDS1("2") TOPS1, HALF1_W2)))
#else
static int32_t product(const uint8_t *row, const products_job *job, const int8_t *column, int bits) {
    int32_t sum = 0;
    for (int j = 0; j < job->row_bytes; j++)
        for (int field = 0; field < 8 / bits; field++) {
            const int scaled = (int8_t)(uint8_t)((row[j] >> (field * bits)) << (8 - bits));
            const int first = j / DDQ_LANES * DDQ_LANES * (8 / bits), place = j % DDQ_LANES;
            const int lane = j < job->whole_bytes ? field * DDQ_LANES + place
                                                  : field / 2 * DDQ_LANES + 2 * place + field % 2;
            sum += scaled * column[first + lane];
        }
    return sum;
}

static void rows3(const uint8_t *row, products_job *job, int bits) {
    for (; job->sums != job->end; job->sums += 2 * PIXELS, row += 2 * job->row_bytes)
        for (int i = 0; i < 2 * PIXELS; i++)
            job->sums[i] = product(row + i % 2 * job->step, job, job->column[i / 2], bits);
}

static void rows1(const uint8_t *row, products_job *job, int bits) {
    for (; job->sums != job->end; job->sums += 4, row += 4 * job->row_bytes) {
        const int rows[4] = {0, job->step, job->step + job->second, job->step + job->second + job->third};
        for (int i = 0; i < 4; i++)
            job->sums[i] = product(row + rows[i], job, job->column[0], bits);
    }
}

#define PRODUCT_ROWS(name, function, bits)                                                                             \
    static void name(const uint8_t *row, products_job *job) { function(row, job, bits); }
PRODUCT_ROWS(rows3_w8, rows3, 8)
PRODUCT_ROWS(rows3_w4, rows3, 4)
PRODUCT_ROWS(rows3_w2, rows3, 2)
PRODUCT_ROWS(rows1_w8, rows1, 8)
PRODUCT_ROWS(rows1_w4, rows1, 4)
PRODUCT_ROWS(rows1_w2, rows1, 2)
#endif

/* Sums of every row of weights with three columns, in pairs of rows. */
static inline void products3(product_rows *run, products_job *job, const uint8_t *row, int rows, int32_t *sums) {
    job->step = job->row_bytes;
    job->sums = sums;
    job->end = sums + rows / 2 * 2 * PIXELS;
    if (rows > 1)
        run(row, job);
    if (rows % 2) {
        job->step = 0;
        job->end = job->sums + 2 * PIXELS;
        run(row + (rows - 1) * job->row_bytes, job);
    }
}

/* Sums of every row of weights with one column, four rows at a time: the last four may overlap those before, and what
 * lacks of four repeats the last row. */
static inline void products1(product_rows *run, products_job *job, const uint8_t *row, int rows, int32_t *sums) {
    job->step = rows > 1 ? job->row_bytes : 0;
    job->second = rows > 2 ? job->row_bytes : 0;
    job->third = rows > 3 ? job->row_bytes : 0;
    job->sums = sums;
    job->end = sums + (rows < 4 ? 4 : rows / 4 * 4);
    run(row, job);
    if (rows > 4 && rows % 4) {
        job->sums = sums + rows - 4;
        job->end = sums + rows;
        run(row + (rows - 4) * job->row_bytes, job);
    }
}

#endif
