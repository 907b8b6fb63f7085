/* Runs the network on codes from a file: on a host, on Linux, and on bare metal through semihosting.
 *
 *   main codes   INPUT OUTPUT        every tensor of every sample: its packed codes
 *   main digests INPUT OUTPUT        one 64-bit digest per tensor over all samples, little-endian
 *   main bench   INPUT OUTPUT RUNS   CSV, a row per weighted layer: median over RUNS of the first sample ("-": stdout)
 *
 * INPUT holds MODEL_INPUT_BYTES per sample. Without arguments the words are read from the file `arguments.txt`, which
 * serves targets that have files but no command line. A digest is FNV-1a over the 8 bytes, lowest first, of each
 * sample's FNV-1a over the packed codes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ddq_clock.h"
#include "model.h"

enum { WORD = 200, MAX_RUNS = 99 };

static const uint64_t FNV_BASIS = 0xcbf29ce484222325u, FNV_PRIME = 0x100000001b3u;

extern const char model_layer_columns[];
extern const char *const model_layers[];

static uint8_t sample[MODEL_INPUT_BYTES];
static uint64_t digests[MODEL_TENSORS];

static uint32_t byte_count(const ddq_step *step) {
    return (step->elements * step->out_bits + 7) / 8;
}

/* The byte of a packed tensor, with zeros beyond its last code. */
static uint8_t clean_byte(const ddq_step *step, const uint8_t *codes, uint32_t index) {
    const uint32_t used = (step->elements - index * (8u / step->out_bits)) * step->out_bits;
    return used >= 8 ? codes[index] : (uint8_t)(codes[index] & ((1u << used) - 1));
}

static void write_codes(void *context, uint32_t index, const ddq_step *step, const uint8_t *codes) {
    (void)index;
    const uint32_t bytes = byte_count(step);
    fwrite(codes, 1, bytes - 1, context);
    fputc(clean_byte(step, codes, bytes - 1), context);
}

static void add_digest(void *context, uint32_t index, const ddq_step *step, const uint8_t *codes) {
    uint64_t hash = FNV_BASIS;
    (void)context;
    for (uint32_t i = 0; i < byte_count(step); i++)
        hash = (hash ^ clean_byte(step, codes, i)) * FNV_PRIME;
    for (int i = 0; i < 8; i++)
        digests[index] = (digests[index] ^ ((hash >> (8 * i)) & 255)) * FNV_PRIME;
}

static int write_digests(FILE *file) {
    for (uint32_t index = 0; index < MODEL_TENSORS; index++)
        for (int i = 0; i < 8; i++)
            fputc((int)((digests[index] >> (8 * i)) & 255), file);
    return ferror(file);
}

static int ascending(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Small C libraries print no 64-bit numbers. */
static const char *decimal(uint64_t value) {
    static char text[21];
    char *digit = text + sizeof text - 1;
    do {
        *--digit = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    return digit;
}

/* Runs the network `runs` times once per layer that is measured, so that one array of values is enough. */
static int bench(FILE *file, int runs) {
    static uint64_t values[MAX_RUNS];
    ddq_clock_start();
    fprintf(file, "%s\n", model_layer_columns);
    for (uint32_t wanted = 0; wanted < MODEL_TENSORS; wanted++) {
        if (!model_layers[wanted])
            continue;
        for (int run = 0; run < runs; run++) {
            uint32_t tensor = 0;
            memcpy(model_input(), sample, MODEL_INPUT_BYTES);
            for (uint32_t i = 0; i < model_step_count && tensor <= wanted; i++) {
                const uint64_t before = ddq_now();
                model_run_step(&model_steps[i]);
                values[run] = ddq_now() - before;
                tensor += model_steps[i].name != 0;
            }
        }
        if (!values[0]) {
            fprintf(stderr, "the clock stands still: define ddq_now() of ddq_clock.h for this target\n");
            return 1;
        }
        qsort(values, (size_t)runs, sizeof values[0], ascending);
        fprintf(file, "%s,%s,%s\n", model_layers[wanted], decimal(values[runs / 2]), ddq_unit());
    }
    return ferror(file);
}

static int execute(const char *mode, const char *input, const char *output, int runs) {
    FILE *in = fopen(input, "rb"), *out = strcmp(output, "-") ? fopen(output, "wb") : stdout;
    int failed = 0;
    if (!in || !out || runs < 1 || runs > MAX_RUNS) {
        fprintf(stderr, "cannot open %s or %s, or runs outside 1 ... %d\n", input, output, MAX_RUNS);
        return 1;
    }
    for (uint32_t index = 0; index < MODEL_TENSORS; index++)
        digests[index] = FNV_BASIS;
    if (!strcmp(mode, "bench")) {
        failed = fread(sample, 1, MODEL_INPUT_BYTES, in) != MODEL_INPUT_BYTES || bench(out, runs);
    } else {
        const int every_code = !strcmp(mode, "codes");
        while (fread(sample, 1, MODEL_INPUT_BYTES, in) == MODEL_INPUT_BYTES)
            model_run_observed(sample, 0, every_code ? write_codes : add_digest, out);
        failed = every_code ? ferror(out) : write_digests(out);
    }
    fclose(in);
    return (fclose(out) != 0) | (failed != 0);
}

int main(int argc, char **argv) {
    static char words[4][WORD];
    const char *given[4] = {"", "", "", "5"};
    int count = 0;
    if (argc > 1) {
        for (; count < 4 && count + 1 < argc; count++)
            given[count] = argv[count + 1];
    } else {
        FILE *file = fopen("arguments.txt", "r");
        while (file && count < 4 && fscanf(file, "%199s", words[count]) == 1) {
            given[count] = words[count];
            count++;
        }
        if (file)
            fclose(file);
    }
    if (count < 3 || (strcmp(given[0], "codes") && strcmp(given[0], "digests") && strcmp(given[0], "bench"))) {
        fprintf(stderr, "usage: main codes|digests|bench INPUT OUTPUT [RUNS]\n");
        return 2;
    }
    return execute(given[0], given[1], given[2], atoi(given[3]));
}
