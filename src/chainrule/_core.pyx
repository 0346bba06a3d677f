# cython: language_level=3, binding=False, embedsignature=False
"""The compiled core as Python calls it: arrays in, statuses out as exceptions, no arithmetic."""

from cpython.buffer cimport (
    Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free


cdef extern from "chainrule.h" nogil:
    ctypedef enum chainrule_status:
        CHAINRULE_OK
        CHAINRULE_VALUE
        CHAINRULE_TYPE
        CHAINRULE_INDEX
        CHAINRULE_MEMORY
        CHAINRULE_STATE

    ctypedef enum chainrule_dtype:
        CHAINRULE_F32
        CHAINRULE_F64
        CHAINRULE_I32
        CHAINRULE_I64
        CHAINRULE_BOOL

    ctypedef struct chainrule_error:
        int32_t status, op
        int64_t instruction, step, position, expected, got
        char message[192]

    ctypedef struct chainrule_array:
        void *data
        int32_t dtype, ndim
        int64_t shape[4]
        int64_t stride[4]

    ctypedef struct chainrule_rows_of:
        void *data
        int64_t rows, width, pitch
        int32_t dtype

    ctypedef struct chainrule_batch:
        int64_t steps, n_sources
        const chainrule_rows_of *sources
        const int64_t *index
        int64_t first_row, n_scalars
        const double *scalars
        int64_t n_results
        double *results
        int64_t n_outputs
        const chainrule_rows_of *outputs
        int64_t budget_ns

    ctypedef struct chainrule_program_stats:
        int64_t temporary_bytes, instructions, barriers, panelled, threads, batch

    ctypedef struct chainrule_program:
        pass

    const char *chainrule_op_name(int op)
    const char *chainrule_activation(int row, const char **residual)
    const char *chainrule_update_name(int row, int *states)
    const char *chainrule_compiler()
    int chainrule_openmp()
    const char *chainrule_isa_at(int i)
    const char *chainrule_isa()
    chainrule_status chainrule_set_isa(const char *name)
    chainrule_status chainrule_uniform(uint64_t key, uint64_t step, double low, double high,
                                       int dtype, void *out, int64_t n)
    chainrule_status chainrule_permutation(uint64_t key, uint64_t epoch, int64_t *out, int64_t n)
    chainrule_status chainrule_run(int op, int n_out, const chainrule_array *out, int n_in,
                                   const chainrule_array *inputs, int n_ints, const int64_t *ints,
                                   int n_floats, const double *floats, int threads,
                                   chainrule_error *error)
    chainrule_status chainrule_program_create(
        int64_t n_buffers, const int64_t *buffers, int64_t n_instructions,
        const int64_t *instructions, const double *floats, chainrule_program **program,
        chainrule_error *error)
    void chainrule_program_free(chainrule_program *program)
    chainrule_status chainrule_program_bind(chainrule_program *program, int64_t buffer,
                                            const chainrule_array *array, chainrule_error *error)
    int chainrule_program_writes(const chainrule_program *program, int64_t buffer)
    chainrule_status chainrule_program_begin(chainrule_program *program, int threads,
                                             chainrule_error *error)
    chainrule_status chainrule_program_run(chainrule_program *program, const chainrule_batch *batch,
                                           int64_t *done, chainrule_error *error)
    void chainrule_program_end(chainrule_program *program)
    void chainrule_program_describe(const chainrule_program *program,
                                    chainrule_program_stats *stats)


cdef int raise_error(chainrule_status status, chainrule_error *error) except -1:
    """The one translator of statuses: returns only if there is nothing to raise."""
    if status == CHAINRULE_OK:
        return 0
    text = error.message.decode("ascii", "replace")
    if status == CHAINRULE_VALUE:
        exception = ValueError(text)
    elif status == CHAINRULE_TYPE:
        exception = TypeError(text)
    elif status == CHAINRULE_INDEX:
        exception = IndexError(text)
        exception.step = error.step
        exception.position = error.position
        exception.op = chainrule_op_name(error.op).decode("ascii")
    elif status == CHAINRULE_MEMORY:
        exception = MemoryError(text)
    else:
        exception = RuntimeError(text)
    raise exception


# --- buffers --------------------------------------------------------------------------------------

cdef int dtype_of(const Py_buffer *view) except -1:
    cdef const char *code = view.format
    if code != NULL:
        if code[0] == b"@" or code[0] == b"=" or code[0] == b"<":
            code += 1
        if code[0] != 0 and code[1] == 0:
            if code[0] == b"f" and view.itemsize == 4:
                return CHAINRULE_F32
            if code[0] == b"d" and view.itemsize == 8:
                return CHAINRULE_F64
            if code[0] == b"i" or code[0] == b"l" or code[0] == b"q":
                return CHAINRULE_I32 if view.itemsize == 4 else CHAINRULE_I64
            if code[0] == b"?":
                return CHAINRULE_BOOL
    raise TypeError("expected an array of float32, float64, int32, int64 or bool, got format "
                    f"{view.format.decode('ascii') if view.format != NULL else None!r}")


cdef int fill_array(const Py_buffer *view, chainrule_array *array) except -1:
    cdef int axis
    array.dtype = dtype_of(view)
    if view.ndim > 4:
        raise ValueError(f"expected at most 4 axes, got {view.ndim}")
    if <uintptr_t>view.buf % <uintptr_t>view.itemsize:
        raise ValueError("expected an aligned array")
    array.data = view.buf
    array.ndim = view.ndim
    for axis in range(view.ndim):
        if view.strides[axis] % view.itemsize:
            raise ValueError("expected strides that are whole elements")
        array.shape[axis] = view.shape[axis]
        array.stride[axis] = view.strides[axis] // view.itemsize
    return 0


cdef int take(object array, Py_buffer *view, chainrule_array *out, bint writable) except -1:
    """Borrow an array's memory; the caller releases `view`."""
    PyObject_GetBuffer(
        array, view, PyBUF_STRIDES | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
    )
    try:
        fill_array(view, out)
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0


cdef bint is_contiguous(const chainrule_array *array, int first):
    """Whether the axes from `first` on are contiguous."""
    cdef int64_t step = 1
    cdef int axis
    for axis in range(array.ndim):
        if array.shape[axis] == 0:
            return True
    for axis in range(array.ndim - 1, first - 1, -1):
        if array.shape[axis] > 1 and array.stride[axis] != step:
            return False
        step *= array.shape[axis]
    return True


cdef void *table(object array, str name, int dtype, int ndim, int64_t columns, Py_buffer *view,
                 int64_t *rows, bint writable) except? NULL:
    """A contiguous table of one type; columns < 0: any number."""
    cdef chainrule_array a
    take(array, view, &a, writable)
    if a.dtype != dtype or a.ndim != ndim or not is_contiguous(&a, 0) or (
            columns >= 0 and a.shape[1] != columns):
        PyBuffer_Release(view)
        raise ValueError(f"{name}: expected a contiguous array of {ndim} axes"
                         f"{f' and {columns} columns' if columns >= 0 else ''} of type "
                         f"{'int64' if dtype == CHAINRULE_I64 else 'float64'}")
    rows[0] = a.shape[0]
    return a.data


# --- what this build has --------------------------------------------------------------------------

def op_names():
    """Names of the ops; the position is the op code."""
    names = []
    while chainrule_op_name(len(names)) != NULL:
        names.append(chainrule_op_name(len(names)).decode("ascii"))
    return names


def activation_rows():
    """(name, residual "y" or "z") of each activation row."""
    cdef const char *residual = NULL
    rows = []
    while chainrule_activation(len(rows), &residual) != NULL:
        rows.append((chainrule_activation(len(rows), &residual).decode("ascii"),
                     residual.decode("ascii")))
    return rows


def update_rows():
    """(name, number of state arrays) of each update row."""
    cdef int states = 0
    rows = []
    while chainrule_update_name(len(rows), &states) != NULL:
        rows.append((chainrule_update_name(len(rows), &states).decode("ascii"), states))
    return rows


def compiler():
    """The C compiler of this build, and whether it can use several threads."""
    return chainrule_compiler().decode("ascii"), chainrule_openmp() != 0


def isas():
    """Instruction sets that this build has and this CPU runs, from the plainest to the widest."""
    names = []
    while chainrule_isa_at(len(names)) != NULL:
        names.append(chainrule_isa_at(len(names)).decode("ascii"))
    return names


def isa():
    """The instruction set in use."""
    return chainrule_isa().decode("ascii")


def set_isa(str name):
    """Use another instruction set from now on."""
    if chainrule_set_isa(name.encode("utf-8")) != CHAINRULE_OK:
        raise ValueError(f"isa: expected one of {', '.join(isas())}, got {name!r}")


# --- random numbers -------------------------------------------------------------------------------

def permutation(uint64_t key, uint64_t epoch, out):
    """Fill `out` (int64, contiguous) with a random order of range(len(out))."""
    cdef Py_buffer view
    cdef int64_t n = 0
    cdef int64_t *data = <int64_t *>table(out, "out", CHAINRULE_I64, 1, -1, &view, &n, True)
    with nogil:
        chainrule_permutation(key, epoch, data, n)
    PyBuffer_Release(&view)


def uniform(uint64_t key, uint64_t step, double low, double high, out):
    """Fill `out` (float32 or float64, contiguous) with uniform numbers in [low, high)."""
    cdef Py_buffer view
    cdef chainrule_array a
    cdef int64_t n = 1
    cdef int axis
    take(out, &view, &a, True)
    try:
        if a.dtype > CHAINRULE_F64:
            raise TypeError("out: expected float32 or float64")
        if not is_contiguous(&a, 0):
            raise ValueError("out: expected a contiguous array")
        for axis in range(a.ndim):
            n *= a.shape[axis]
        with nogil:
            chainrule_uniform(key, step, low, high, a.dtype, a.data, n)
    finally:
        PyBuffer_Release(&view)


# --- one instruction ------------------------------------------------------------------------------

cdef enum:
    SMALL = 8192  # elements: below, letting go of the GIL costs more than it gives


def run(int op, tuple inputs, tuple outputs, tuple ints, tuple floats, int threads):
    """Run one instruction on arrays; the results go to `outputs`."""
    cdef Py_buffer views[12]
    cdef chainrule_array ins[8]
    cdef chainrule_array outs[4]
    cdef int64_t i[8]
    cdef double f[4]
    cdef chainrule_error error
    cdef chainrule_status status
    cdef int n_in = len(inputs), n_out = len(outputs), n_i = len(ints), n_f = len(floats)
    cdef int taken = 0, j
    cdef int64_t size = 0
    if n_in > 8 or n_out > 4 or n_i > 8 or n_f > 4:
        raise ValueError("expected at most 8 inputs, 4 outputs, 8 ints and 4 floats")
    try:
        for j in range(n_out):
            take(outputs[j], &views[taken], &outs[j], True)
            taken += 1
            size += views[j].len // views[j].itemsize
        for j in range(n_in):
            take(inputs[j], &views[taken], &ins[j], False)
            size += views[taken].len // views[taken].itemsize
            taken += 1
        for j in range(n_i):
            i[j] = ints[j]
        for j in range(n_f):
            f[j] = floats[j]
        if size < SMALL:
            status = chainrule_run(op, n_out, outs, n_in, ins, n_i, i, n_f, f, threads, &error)
        else:
            with nogil:
                status = chainrule_run(op, n_out, outs, n_in, ins, n_i, i, n_f, f, threads, &error)
        if status != CHAINRULE_OK:
            raise_error(status, &error)
    finally:
        for j in range(taken):
            PyBuffer_Release(&views[j])


# --- programs -------------------------------------------------------------------------------------

cdef class Program:
    """A flat list of instructions, checked, planned and ready to run."""

    cdef chainrule_program *program
    cdef Py_buffer *bound  # of each buffer; obj is NULL where nothing is bound
    cdef int64_t n_buffers
    cdef bint busy

    def __cinit__(self, buffers, instructions, floats):
        cdef Py_buffer views[3]
        cdef int64_t rows[3]
        cdef void *data[3]
        cdef chainrule_error error
        cdef chainrule_status status
        cdef int taken = 0, j
        try:
            data[0] = table(buffers, "buffers", CHAINRULE_I64, 2, 8, &views[0], &rows[0], False)
            taken = 1
            data[1] = table(
                instructions, "instructions", CHAINRULE_I64, 2, 24, &views[1], &rows[1], False)
            taken = 2
            data[2] = table(floats, "floats", CHAINRULE_F64, 2, 4, &views[2], &rows[2], False)
            taken = 3
            if rows[1] != rows[2]:
                raise ValueError(f"floats: expected {rows[1]} rows, got {rows[2]}")
            self.n_buffers = rows[0]
            self.bound = <Py_buffer *>calloc(<size_t>rows[0] + 1, sizeof(Py_buffer))
            if self.bound == NULL:
                raise MemoryError()
            status = chainrule_program_create(
                rows[0], <int64_t *>data[0], rows[1], <int64_t *>data[1], <double *>data[2],
                &self.program, &error)
            if status != CHAINRULE_OK:
                if status == CHAINRULE_TYPE:  # a table that does not fit together is a wrong value
                    status = CHAINRULE_VALUE
                raise_error(status, &error)
        finally:
            for j in range(taken):
                PyBuffer_Release(&views[j])

    def __dealloc__(self):
        cdef int64_t b
        chainrule_program_free(self.program)
        if self.bound != NULL:
            for b in range(self.n_buffers):
                PyBuffer_Release(&self.bound[b])
            free(self.bound)

    cdef int enter(self) except -1:
        if self.busy:
            raise RuntimeError("the program is in use by another thread")
        self.busy = True
        return 0

    def bind(self, int64_t buffer, array):
        """Use `array` (C-contiguous, aligned) for a PARAM or CONST; it is borrowed."""
        cdef Py_buffer view
        cdef chainrule_array a
        cdef chainrule_error error
        cdef chainrule_status status
        take(array, &view, &a, chainrule_program_writes(self.program, buffer))
        self.enter()
        status = chainrule_program_bind(self.program, buffer, &a, &error)
        self.busy = False
        if status != CHAINRULE_OK:
            PyBuffer_Release(&view)
            raise_error(status, &error)
        PyBuffer_Release(&self.bound[buffer])
        self.bound[buffer] = view

    def begin(self, int threads):
        """Take the parameters into the program's own layout."""
        cdef chainrule_error error
        cdef chainrule_status status
        self.enter()
        with nogil:
            status = chainrule_program_begin(self.program, threads, &error)
        self.busy = False
        if status != CHAINRULE_OK:
            raise_error(status, &error)

    def end(self):
        """Write the parameters back to the bound arrays."""
        self.enter()
        with nogil:
            chainrule_program_end(self.program)
        self.busy = False

    def run(self, int64_t steps, tuple sources, index, int64_t first_row, scalars, results,
            tuple outputs, int64_t budget_ns):
        """Run up to `steps` steps and return how many were done."""
        cdef int n_sources = len(sources), n_outputs = len(outputs), taken = 0, j
        cdef int64_t rows = 0, done = 0
        cdef chainrule_batch batch
        cdef chainrule_error error
        cdef chainrule_status status
        cdef chainrule_program_stats stats
        cdef chainrule_array a
        cdef Py_buffer *views = <Py_buffer *>calloc(
            <size_t>(n_sources + n_outputs + 3), sizeof(Py_buffer))
        cdef chainrule_rows_of *table_of = <chainrule_rows_of *>calloc(
            <size_t>(n_sources + n_outputs + 1), sizeof(chainrule_rows_of))
        try:
            if views == NULL or table_of == NULL:
                raise MemoryError()
            chainrule_program_describe(self.program, &stats)
            for j in range(n_sources + n_outputs):
                array = sources[j] if j < n_sources else outputs[j - n_sources]
                take(array, &views[taken], &a, j >= n_sources)
                taken += 1
                if a.ndim == 0 or not is_contiguous(&a, 1):
                    raise ValueError("sources and outputs: expected rows that are contiguous")
                table_of[j].data = a.data
                table_of[j].dtype = a.dtype
                table_of[j].rows = a.shape[0]
                table_of[j].pitch = a.stride[0]
                table_of[j].width = 1
                for axis in range(1, a.ndim):
                    table_of[j].width *= a.shape[axis]
            batch.steps = steps
            batch.n_sources = n_sources
            batch.sources = table_of
            batch.n_outputs = n_outputs
            batch.outputs = table_of + n_sources
            batch.first_row = first_row
            batch.budget_ns = budget_ns
            batch.index = NULL
            if index is not None:
                batch.index = <const int64_t *>table(
                    index, "index", CHAINRULE_I64, 1, -1, &views[taken], &rows, False)
                taken += 1
                if stats.batch and rows // stats.batch < steps:
                    raise ValueError(
                        f"index: expected {steps} * {stats.batch} row numbers, got {rows}")
            batch.scalars = <const double *>table(
                scalars, "scalars", CHAINRULE_F64, 2, -1, &views[taken], &rows, False)
            batch.n_scalars = views[taken].shape[1]
            taken += 1
            if rows < steps:
                raise ValueError(f"scalars: expected {steps} rows, got {rows}")
            batch.results = <double *>table(
                results, "results", CHAINRULE_F64, 2, -1, &views[taken], &rows, True)
            batch.n_results = views[taken].shape[1]
            taken += 1
            if rows < steps:
                raise ValueError(f"results: expected {steps} rows, got {rows}")
            self.enter()
            with nogil:
                status = chainrule_program_run(self.program, &batch, &done, &error)
            self.busy = False
            if status != CHAINRULE_OK:
                raise_error(status, &error)
            return done
        finally:
            for j in range(taken):
                PyBuffer_Release(&views[j])
            free(views)
            free(table_of)

    def stats(self):
        """Sizes of the plan: bytes of temporaries, instructions, barriers a step, ..."""
        cdef chainrule_program_stats stats
        chainrule_program_describe(self.program, &stats)
        return {
            "temporary_bytes": stats.temporary_bytes,
            "instructions": stats.instructions,
            "barriers": stats.barriers,
            "panelled": stats.panelled,
            "threads": stats.threads,
        }
