/* Runs operations without weights on two sizes each and prints what it ran, for count_steps.py:
 * operation,in_bits,out_bits,elements read,outputs */
#include <stdio.h>

#ifndef ROUNDING
#define ROUNDING DDQ_DOUBLE
#endif

#include "ddq_steps.h"

enum { CHANNELS = 16, MOST = 32 * 32 * CHANNELS };

static uint8_t arena[4 * MOST];
static uint8_t table[256];

__attribute__((noinline)) void ddq_count_begin(void);
__attribute__((noinline)) void ddq_count_end(void);

void ddq_count_begin(void) { __asm__ volatile("" ::: "memory"); }

void ddq_count_end(void) { __asm__ volatile("" ::: "memory"); }

static void measure(const char *name, ddq_operation *run, const void *facts, int bits, uint32_t elements,
                    uint32_t read) {
    for (uint32_t i = 0; i < 2 * MOST; i++)
        arena[i] = (uint8_t)(i * 37 + i / 251);
    const ddq_step step = {
        .name = name, .run = run, .facts = facts, .x = {0, MOST}, .y = 2 * MOST, .scratch = 3 * MOST,
        .elements = elements, .in_bits = {(uint8_t)bits, (uint8_t)bits}, .out_bits = (uint8_t)bits,
    };
    ddq_count_begin();
    run(&step, arena);
    ddq_count_end();
    printf("%s,%d,%d,%lu,%lu\n", name, bits, bits, (unsigned long)read, (unsigned long)elements);
}

static void measure_all(int bits, uint32_t side) {
    const uint32_t positions = side * side, count = positions * CHANNELS;
    const uint8_t high = (uint8_t)((1 << bits) - 1), zero = high / 2;
    const ddq_factor half = {1 << 30, 0}, small = {1 << 30, -9}, mean = {1 << 30, -8};
    const ddq_add_facts add = {.in = {half, half}, .out = small, .elements = {count, count}, .left_shift = 10,
                               .in_zero = {zero, zero}, .out_zero = zero, .high = high, .rounding = ROUNDING};
    const ddq_multiply_facts product = {.out = mean, .elements = {count, CHANNELS}, .in_zero = {zero, zero},
                                        .out_zero = zero, .high = high, .rounding = ROUNDING};
    const ddq_mean_facts average = {.out = mean, .positions = positions, .channels = CHANNELS, .in_zero = zero,
                                    .out_zero = zero, .high = high, .rounding = ROUNDING};
    const ddq_pool_facts two = {.in_h = side, .in_w = side, .channels = CHANNELS, .out_h = side / 2, .out_w = side / 2,
                                .kernel_h = 2, .kernel_w = 2, .stride_h = 2, .stride_w = 2, .zero = zero};
    const ddq_pool_facts three = {.in_h = side, .in_w = side, .channels = CHANNELS, .out_h = side, .out_w = side,
                                  .kernel_h = 3, .kernel_w = 3, .stride_h = 1, .stride_w = 1, .pad_top = 1,
                                  .pad_bottom = 1, .pad_left = 1, .pad_right = 1, .zero = zero};
    const ddq_lookup_facts lookup = {table};
    const ddq_copy halves[2] = {
        {.x = 0, .size = {1, 1, 1, 1, positions, CHANNELS / 2}, .in_stride = {0, 0, 0, 0, CHANNELS / 2, 1},
         .out_stride = {0, 0, 0, 0, CHANNELS, 1}},
        {.x = MOST, .out_start = CHANNELS / 2, .size = {1, 1, 1, 1, positions, CHANNELS / 2},
         .in_stride = {0, 0, 0, 0, CHANNELS / 2, 1}, .out_stride = {0, 0, 0, 0, CHANNELS, 1}},
    };
    const ddq_move_facts concat = {halves, 2};
    measure("add", ddq_add, &add, bits, count, 2 * count);
    measure("multiply", ddq_multiply, &product, bits, count, count + CHANNELS);
    measure("mean", ddq_mean, &average, bits, CHANNELS, count);
    measure("max_pool2d_2x2", ddq_max_pool, &two, bits, count / 4, count);
    measure("max_pool2d_3x3", ddq_max_pool, &three, bits, count, 9 * count);
    measure("avg_pool2d_2x2", ddq_average_pool, &two, bits, count / 4, count);
    measure("avg_pool2d_3x3", ddq_average_pool, &three, bits, count, 9 * count);
    measure("lookup", ddq_lookup, &lookup, bits, count, count);
    measure("concat", ddq_move, &concat, bits, count, count);
}

int main(void) {
    for (int i = 0; i < 256; i++)
        table[i] = (uint8_t)(i >> 6);
    for (int bits = 8; bits >= 2; bits /= 2)
        for (uint32_t side = 8; side <= 32; side *= 2)
            measure_all(bits, side);
    return 0;
}
