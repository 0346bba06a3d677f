/* Class COPY, and how data enters and leaves a program: the same for every element type and ISA.
 * All parts are [begin, end) of the outermost axis of what is written. Private to the core. */
#ifndef CHAINRULE_COPY_H
#define CHAINRULE_COPY_H

#include "kernels.h"

/* Bytes of an element. */
static inline int64_t chainrule_size(int dtype) {
    return dtype == DT_BOOL ? 1 : dtype == DT_F32 || dtype == DT_I32 ? 4 : 8;
}

/* transpose, reshape, slice, unslice, concatenate; inner axes of reshape's operands are contiguous
 */
void chainrule_copy(const chainrule_call *, int64_t begin, int64_t end);

/* A data source or an output of a program: `rows` rows, the elements of each contiguous. */
typedef struct {
    char *data;
    int64_t rows, pitch; /* pitch in bytes */
    int32_t dtype;
    int64_t width; /* elements of a row */
} chainrule_rows;

/* to(r, :) = source(index[r], :), cast; index NULL stands for first, first + 1, ...
 * Returns -1, or the first position r whose row number is out of range (nothing read there). */
int64_t chainrule_load(const chainrule_view *to, const chainrule_rows *source, const int64_t *index,
                       int64_t first, int64_t begin, int64_t end);

/* output(first + r, :) = from(r, :), same type */
void chainrule_store(const chainrule_view *from, const chainrule_rows *output, int64_t first,
                     int64_t begin, int64_t end);

/* n numbers from one type to another. Floats become integers towards zero, and the least integer
 * where that does not fit; anything but zero becomes true. */
void chainrule_cast(int to_type, void *to, int from_type, const void *from, int64_t n);

#endif
