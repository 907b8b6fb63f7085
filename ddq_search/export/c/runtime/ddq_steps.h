/* The schedule of a network: a constant table of steps over one arena, and the operations without weights.
 *
 * Codes lie packed along the flat index of a channel-last tensor: the last two dimensions come first, [H, W, C].
 * Operations work on codes and never allocate. Products and sums stay in int32 where the program's invariants bound
 * them, in int64 elsewhere.
 */
#ifndef DDQ_STEPS_H
#define DDQ_STEPS_H

#include "ddq_kernels.h"

typedef struct ddq_step ddq_step;

/* Computes one tensor: reads the arena at step->x, writes it at step->y. */
typedef void ddq_operation(const ddq_step *step, uint8_t *arena);

struct ddq_step {
    const char *name;    /* the tensor's name; NULL: a movement that completes no tensor of the program */
    ddq_operation *run;  /* NULL: the tensor is where its source is, or the caller writes it */
    const void *facts;   /* what `run` needs: one of the structures below */
    uint32_t x[2];       /* first byte of the arguments in the arena */
    uint32_t y;          /* first byte of the result */
    uint32_t scratch;    /* first byte of the scratch */
    uint32_t elements;   /* codes in the result */
    uint8_t in_bits[2], out_bits;
};

/* A weighted layer and the kernel that executes it. */
typedef struct {
    ddq_kernel *kernel;
    ddq_layer layer;
} ddq_weighted_facts;

typedef struct {
    int32_t multiplier;
    int8_t shift;
} ddq_factor;

/* y = clamp(requantize(sum of both arguments on one grid) + out_zero) */
typedef struct {
    ddq_factor in[2], out;
    uint32_t elements[2]; /* codes of each argument: fewer than the result's where it is one code per channel */
    uint8_t left_shift, in_zero[2], out_zero, low, high, rounding;
} ddq_add_facts;

/* y = clamp(requantize(product of the arguments) + out_zero) */
typedef struct {
    ddq_factor out;
    uint32_t elements[2];
    uint8_t in_zero[2], out_zero, low, high, rounding;
} ddq_multiply_facts;

/* Mean over both spatial dimensions: y[c] = clamp(requantize(sum over positions of (x - in_zero)) + out_zero) */
typedef struct {
    ddq_factor out;
    uint32_t positions, channels;
    uint8_t in_zero, out_zero, high, rounding;
} ddq_mean_facts;

enum { DDQ_HALF_UP = 0, DDQ_HALF_AWAY = 1 };

/* Pools: windows over [H, W, C]. */
typedef struct {
    uint32_t in_h, in_w, channels, out_h, out_w;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right;
    uint8_t zero, count_padding, rounding;
} ddq_pool_facts;

/* y = table[x] */
typedef struct {
    const uint8_t *table; /* [256] */
} ddq_lookup_facts;

enum { DDQ_RANK = 6 };

/* y[out_start + sum(i * out_stride)] = x[in_start + sum(i * in_stride)] for all i < size; indices count codes. */
typedef struct {
    uint32_t x; /* first byte of the source in the arena */
    uint32_t in_start, out_start;
    uint32_t size[DDQ_RANK], in_stride[DDQ_RANK], out_stride[DDQ_RANK];
} ddq_copy;

typedef struct {
    const ddq_copy *copies;
    uint32_t count;
} ddq_move_facts;

/* A permutation in place. Strides fall along the axes: the code at index p = sum(i * in_stride) is number
 * f = sum(i * in_flat) of the tensor; f = sum(j * out_flat), and it goes to index sum(j * out_stride). */
typedef struct {
    uint32_t in_stride[DDQ_RANK], in_flat[DDQ_RANK];
    uint32_t out_flat[DDQ_RANK], out_stride[DDQ_RANK];
} ddq_reorder_facts;

ddq_operation ddq_weighted, ddq_add, ddq_multiply, ddq_mean, ddq_max_pool, ddq_average_pool, ddq_lookup, ddq_move,
    ddq_reorder;

#endif
