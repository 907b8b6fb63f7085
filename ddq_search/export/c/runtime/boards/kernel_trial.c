/* Runs kernels on layers from a file: kernel_trial CASES RESULTS
 *
 * CASES, native byte order: int32 count; then for every case the int32 values of `struct header`, the weights, bias,
 * multipliers, shifts, codebook and input. RESULTS: for every case the output, then one byte: 0, or which buffer was
 * written past its end ('s' scratch, 'y' output). Every buffer has exactly the size the description states, so that an
 * address sanitizer sees each byte too far; DDQ_TRIAL_GUARD more bytes are checked where there is none.
 *
 * With DDQ_TRIAL_POINTS, cases also hold the weights and ratios of a further point, after the codebook. Apart, because
 * what is counted around a call depends on everything else in the function.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ddq_kernels.h"

#ifndef DDQ_TRIAL_GUARD
#define DDQ_TRIAL_GUARD 16
#endif

enum { POISON = 0xA5 };

struct header {
    int32_t kernel, weight_bytes, codebook_bytes, input_bytes, output_bytes, scratch_bytes;
    int32_t in_h, in_w, in_c, out_h, out_w, out_c, groups, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    int32_t dilation_h, dilation_w, w_bits, in_bits, out_bits, in_zero, out_zero, low, high, rounding;
#ifdef DDQ_TRIAL_POINTS
    int32_t point_bytes;
#endif
};

extern ddq_kernel *const ddq_trial_kernels[];

/* Instructions are counted from the entry of the first to the entry of the second. */
__attribute__((noinline)) void ddq_count_begin(void);
__attribute__((noinline)) void ddq_count_end(void);

void ddq_count_begin(void) { __asm__ volatile("" ::: "memory"); }

void ddq_count_end(void) { __asm__ volatile("" ::: "memory"); }

__attribute__((noreturn)) static void fail(const char *what) {
    fprintf(stderr, "kernel_trial: %s\n", what);
    exit(1);
}

static uint8_t *aligned(void **block, size_t bytes) {
    *block = malloc(bytes + (DDQ_TRIAL_GUARD ? 16 + DDQ_TRIAL_GUARD : 0));
    if (*block == NULL && bytes)
        fail("out of memory");
    uint8_t *start = *block;
    if (DDQ_TRIAL_GUARD)
        start += (16 - (uintptr_t)start % 16) % 16;
    if (bytes)
        memset(start, POISON, bytes);
    for (int i = 0; i < DDQ_TRIAL_GUARD; i++)
        start[bytes + (size_t)i] = POISON;
    return start;
}

static void *read_block(FILE *file, size_t bytes) {
    void *block = malloc(bytes ? bytes : 1);
    if (block == NULL || fread(block, 1, bytes, file) != bytes)
        fail("the file of cases ends early, or memory does");
    return block;
}

static int intact(const uint8_t *end) {
    for (int i = 0; i < DDQ_TRIAL_GUARD; i++)
        if (end[i] != POISON)
            return 0;
    return 1;
}

static void run_case(FILE *cases, FILE *results) {
    struct header h;
    if (fread(&h, sizeof h, 1, cases) != 1)
        fail("the file of cases ends early");
    void *const weights = read_block(cases, (size_t)h.weight_bytes);
    void *const bias = read_block(cases, (size_t)h.out_c * 4);
    void *const multiplier = read_block(cases, (size_t)h.out_c * 4);
    void *const shift = read_block(cases, (size_t)h.out_c);
    void *const codebook = read_block(cases, (size_t)h.codebook_bytes);
#ifdef DDQ_TRIAL_POINTS
    void *const point_weights = read_block(cases, (size_t)h.point_bytes);
    void *const ratio = read_block(cases, h.point_bytes ? (size_t)h.out_c * 2 : 0);
    const ddq_point point = {.weights = point_weights, .ratio = ratio, .w_bits = (uint8_t)h.w_bits};
#endif
    void *const x = read_block(cases, (size_t)h.input_bytes);
    const ddq_layer layer = {
        .weights = weights, .bias = bias, .multiplier = multiplier, .shift = shift,
        .codebook = h.codebook_bytes ? codebook : NULL,
#ifdef DDQ_TRIAL_POINTS
        .points = h.point_bytes ? &point : NULL, .point_count = h.point_bytes ? 1 : 0,
#endif
        .in_h = (uint16_t)h.in_h, .in_w = (uint16_t)h.in_w, .in_c = (uint16_t)h.in_c,
        .out_h = (uint16_t)h.out_h, .out_w = (uint16_t)h.out_w, .out_c = (uint16_t)h.out_c,
        .groups = (uint16_t)h.groups, .kernel_h = (uint8_t)h.kernel_h, .kernel_w = (uint8_t)h.kernel_w,
        .stride_h = (uint8_t)h.stride_h, .stride_w = (uint8_t)h.stride_w,
        .pad_top = (uint8_t)h.pad_top, .pad_left = (uint8_t)h.pad_left,
        .dilation_h = (uint8_t)h.dilation_h, .dilation_w = (uint8_t)h.dilation_w,
        .w_bits = (uint8_t)h.w_bits, .in_bits = (uint8_t)h.in_bits, .out_bits = (uint8_t)h.out_bits,
        .in_zero = (uint8_t)h.in_zero, .out_zero = (uint8_t)h.out_zero,
        .low = (uint8_t)h.low, .high = (uint8_t)h.high, .rounding = (uint8_t)h.rounding,
    };
    void *y_block, *scratch_block;
    uint8_t *const y = aligned(&y_block, (size_t)h.output_bytes);
    uint8_t *const scratch = aligned(&scratch_block, (size_t)h.scratch_bytes);
    ddq_kernel *const kernel = ddq_trial_kernels[h.kernel];
    ddq_count_begin();
    kernel(&layer, x, y, scratch);
    ddq_count_end();
    const char verdict = intact(scratch + h.scratch_bytes) ? intact(y + h.output_bytes) ? 0 : 'y' : 's';
    if (fwrite(y, 1, (size_t)h.output_bytes, results) != (size_t)h.output_bytes || fwrite(&verdict, 1, 1, results) != 1)
        fail("cannot write the results");
    void *const blocks[] = {weights, bias, multiplier, shift, codebook, x, y_block, scratch_block};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        free(blocks[i]);
#ifdef DDQ_TRIAL_POINTS
    free(point_weights);
    free(ratio);
#endif
}

int main(int argc, char **argv) {
    FILE *const cases = argc == 3 ? fopen(argv[1], "rb") : NULL;
    FILE *const results = argc == 3 ? fopen(argv[2], "wb") : NULL;
    int32_t count;
    if (cases == NULL || results == NULL || fread(&count, sizeof count, 1, cases) != 1)
        fail("usage: kernel_trial CASES RESULTS");
    while (count-- > 0)
        run_case(cases, results);
    fclose(cases);
    return fclose(results) != 0;
}
