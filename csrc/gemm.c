/* Contractions: C = epilogue(A B), and the weight panels they read.
 *
 * Letters: M rows, N columns, K terms of a chain. A micro-kernel finishes a tile of up to MR rows
 * by PANEL columns in registers: A comes by broadcast, B by vectors. Whatever the blocking, an
 * element is one ascending chain of fma from +0: a block over K that is not the last leaves its
 * tile in memory, and the next block goes on from there.
 */
#include "isa.h"
#include "kernels.h"

#include "activations.h"
#include "update.h"

#if defined(CHAINRULE_ISA_AVX512) || defined(CHAINRULE_ISA_NEON)
#define MR 12 /* 32 registers: 24 accumulators, 2 of B, 1 of A */
#define FEW 4 /* rows that do not repay packing B */
#define EACH_MR(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#define EACH_FEW(X) X(1) X(2) X(3) X(4)
#else
#define MR 6 /* 16 registers: 12, 2 and 1 */
#define FEW 2
#define EACH_MR(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define EACH_FEW(X) X(1) X(2)
#endif
#if defined(__clang__)
#define FULLY _Pragma("clang loop unroll(full)")
#else
#define FULLY _Pragma("GCC unroll 16")
#endif

#define PANEL (2 * VLANES)
#define A_TILE ((MR + VLANES - 1) / VLANES * VLANES) /* k-stride of a packed tile of A */
#define TILE_STEP(kb) (A_TILE * ((kb) + 1))      /* tiles must not fall into one set of the L1 */
#define KC ((int)(32768 / sizeof(real) / PANEL)) /* a block of a panel takes 2/3 of an L1 */
#define MC (16 * MR)                             /* a packed block of A stays in L2 */
#define KEEP 1024                                /* rows and columns of a block kept in scratch */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* min(n, VLANES) lanes, the common case first */
INLINE vreal load_upto(const real *p, int64_t n) {
    return n >= VLANES ? v_load(p) : v_load_n(p, (int)n);
}
INLINE void store_upto(real *p, vreal v, int64_t n) {
    if (n >= VLANES)
        v_store(p, v);
    else
        v_store_n(p, v, (int)n);
}

/* ---- moving blocks ------------------------------------------------------------------------- */

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vint){__VA_ARGS__})
#endif
#define LANES2(F, h) F(0, h), F(1, h)
#define LANES4(F, h) LANES2(F, h), F(2, h), F(3, h)
#define LANES8(F, h) LANES4(F, h), F(4, h), F(5, h), F(6, h), F(7, h)
#define LANES16(F, h)                                                                              \
    LANES8(F, h), F(8, h), F(9, h), F(10, h), F(11, h), F(12, h), F(13, h), F(14, h), F(15, h)
#define LANES_PASTE(n, F, h) LANES##n(F, h)
#define LANES_EXPAND(n, F, h) LANES_PASTE(n, F, h)
#if VBYTES * 8 / CHAINRULE_REAL == 16
#define LANES(F, h) LANES_EXPAND(16, F, h)
#elif VBYTES * 8 / CHAINRULE_REAL == 8
#define LANES(F, h) LANES_EXPAND(8, F, h)
#elif VBYTES * 8 / CHAINRULE_REAL == 4
#define LANES(F, h) LANES_EXPAND(4, F, h)
#else
#define LANES(F, h) LANES_EXPAND(2, F, h)
#endif

/* Lane l of a shuffle of (a, b), b's lanes counting from VLANES. Within each group of g lanes (16
 * bytes): a and b interleaved, low halves and high halves. Across: blocks of h lanes exchanged. */
#define ZIP_LOW(l, g) ((l) / (g) * (g) + (l) % (g) / 2 + (l) % 2 * VLANES)
#define ZIP_HIGH(l, g) (ZIP_LOW(l, g) + (g) / 2)
#define SWAP_LOW(l, h) ((l) & (h) ? VLANES + (l) - (h) : (l))
#define SWAP_HIGH(l, h) ((l) & (h) ? VLANES + (l) : (l) + (h))

#define SWAP_BLOCKS(h)                                                                             \
    FULLY for (int i = 0; i < VLANES; i++) if (!(i & (h))) {                                       \
        vreal low = SHUFFLE(v[i], v[i + (h)], LANES(SWAP_LOW, h));                                 \
        v[i + (h)] = SHUFFLE(v[i], v[i + (h)], LANES(SWAP_HIGH, h));                               \
        v[i] = low;                                                                                \
    }

/* v as a VLANES x VLANES matrix, transposed in registers: groups of 16 bytes first, then the groups
 * among themselves */
INLINE void transpose_block(vreal v[VLANES]) {
    enum { G = 16 / sizeof(real) };
    vreal t[VLANES];
    for (int round = 1; round < G; round *= 2) {
        FULLY for (int i = 0; i < VLANES; i += G) FULLY for (int j = 0; j < G / 2; j++) {
            t[i + 2 * j] = SHUFFLE(v[i + j], v[i + j + G / 2], LANES(ZIP_LOW, G));
            t[i + 2 * j + 1] = SHUFFLE(v[i + j], v[i + j + G / 2], LANES(ZIP_HIGH, G));
        }
        FULLY for (int i = 0; i < VLANES; i++) v[i] = t[i];
    }
#if VBYTES >= 32
    SWAP_BLOCKS(G)
#endif
#if VBYTES >= 64
    SWAP_BLOCKS(2 * G)
#endif
}

/* the first VLANES x VLANES of a matrix, zero past its rows and columns */
INLINE void load_block(vreal v[VLANES], const real *from, int64_t ld, int64_t rows,
                       int64_t columns) {
    if (rows >= VLANES && columns >= VLANES) {
        FULLY for (int i = 0; i < VLANES; i++) v[i] = v_load(from + i * ld);
    } else {
        FULLY for (int i = 0; i < VLANES; i++) v[i] =
            i < rows ? load_upto(from + i * ld, columns) : v_splat(0);
    }
}

/* to(c, r) = from(r, c), zero for rows <= r < width */
static void transpose(const real *from, int64_t ld_from, int64_t rows, int64_t columns, real *to,
                      int64_t ld_to, int64_t width) {
    for (int64_t r = 0; r < width; r += VLANES) {
        for (int64_t c = 0; c < columns; c += VLANES) {
            const real *block = from + r * ld_from + c;
            vreal v[VLANES];
            load_block(v, block, ld_from, rows - r, columns - c);
            transpose_block(v);
            real *out = to + c * ld_to + r;
            if (r + VLANES <= width && c + VLANES <= columns) {
                FULLY for (int i = 0; i < VLANES; i++) v_store(out + i * ld_to, v[i]);
            } else {
                FULLY for (int i = 0; i < VLANES; i++) if (c + i < columns) {
                    store_upto(out + i * ld_to, v[i], width - r);
                }
            }
        }
    }
}

/* to(r, c) = from(r, c), zero for columns <= c < width */
static void copy_rows(const real *from, int64_t ld_from, int64_t rows, int64_t columns, real *to,
                      int64_t ld_to, int64_t width) {
    for (int64_t r = 0; r < rows; r++, from += ld_from, to += ld_to) {
        for (int64_t c = 0; c < width; c += VLANES) {
            vreal v = c < columns ? load_upto(from + c, columns - c) : v_splat(0);
            store_upto(to + c, v, width - c);
        }
    }
}

/* to(k, n), PANEL wide = B(k, n), zero past `columns` */
static void pack_panel(const real *b, int64_t b_ks, int64_t b_ns, int64_t k, int64_t columns,
                       real *to) {
    if (b_ns == 1)
        copy_rows(b, b_ks, k, columns, to, PANEL, PANEL);
    else
        transpose(b, b_ns, columns, k, to, PANEL, PANEL);
}

/* ---- micro-kernels -------------------------------------------------------------------------- */

/* to(i, n) = chain over k of A(i, k) B(k, n), going on from `from` or, if NULL, from +0;
 * i < mr, n < nv * VLANES. A's other stride is `as`, B's n-stride is 1. */
typedef void kernel(int64_t k, const real *a, int64_t as, const real *b, int64_t b_ks,
                    const real *from, int64_t ld_from, real *to, int64_t ld_to);

/* One pointer for three rows of A where k is its unit stride (the addressing modes reach p, p + as
 * and p + 2 as), so that the rows do not use up the general registers. */
INLINE void chain(const int mr, const int nv, const int unit_k, int64_t k, const real *a,
                  int64_t as, const real *b, int64_t b_ks, const real *from, int64_t ld_from,
                  real *to, int64_t ld_to) {
    vreal acc[MR][2];
    const real *rows[(MR + 2) / 3];
    if (from) {
        FULLY for (int i = 0; i < mr; i++) FULLY for (int v = 0; v < nv; v++) acc[i][v] =
            v_load(from + i * ld_from + v * VLANES);
    } else {
        FULLY for (int i = 0; i < mr; i++) FULLY for (int v = 0; v < nv; v++) acc[i][v] =
            v_splat(0);
    }
    FULLY for (int i = 0; i < mr; i += 3) rows[i / 3] = a + i * as;
    for (; k > 0; k--) {
        vreal bk[2];
        FULLY for (int v = 0; v < nv; v++) bk[v] = v_keep(v_load(b + v * VLANES));
        FULLY for (int i = 0; i < mr; i++) {
            vreal ai = v_splat(unit_k ? rows[i / 3][i % 3 * as] : a[i]);
            if (nv > 1) ai = v_keep(ai);
            FULLY for (int v = 0; v < nv; v++) acc[i][v] = v_fma(ai, bk[v], acc[i][v]);
        }
        if (unit_k) {
            FULLY for (int i = 0; i < mr; i += 3) {
                rows[i / 3]++;
                __asm__("" : "+r"(rows[i / 3]));
            }
        } else {
            a += as;
        }
        b += b_ks;
    }
    FULLY for (int i = 0; i < mr; i++) FULLY for (int v = 0; v < nv; v++)
        v_store(to + i * ld_to + v * VLANES, acc[i][v]);
}

/* A row or two across several panels: else the chains of one panel are too few to hide the latency
 * of an fma, and the rows of an unpacked B are read in pieces too short to stream. Panel p of the
 * result goes to to + p * mr * PANEL. */
INLINE void chain_wide(const int mr, const int panels, int64_t k, const real *a, int64_t a_rs,
                       int64_t a_ks, const real *b, int64_t b_ks, int64_t b_js, real *to) {
    vreal acc[2][8];
    FULLY for (int i = 0; i < mr; i++) FULLY for (int v = 0; v < 2 * panels; v++) acc[i][v] =
        v_splat(0);
    for (; k > 0; k--, a += a_ks, b += b_ks) {
        vreal ai[2];
        FULLY for (int i = 0; i < mr; i++) ai[i] = v_keep(v_splat(a[i * a_rs]));
        FULLY for (int v = 0; v < 2 * panels; v++) {
            vreal bk = v_load(b + v / 2 * b_js + v % 2 * VLANES);
            if (mr > 1) bk = v_keep(bk);
            FULLY for (int i = 0; i < mr; i++) acc[i][v] = v_fma(ai[i], bk, acc[i][v]);
        }
    }
    FULLY for (int v = 0; v < 2 * panels; v++) FULLY for (int i = 0; i < mr; i++)
        v_store(to + (v / 2 * mr + i) * PANEL + v % 2 * VLANES, acc[i][v]);
}

/* A few rows against a panel whose columns are given as rows, transposed block by block in
 * registers: B(k, n) = b[n * b_ns + k]. */
INLINE void chain_few(const int mr, int64_t k, const real *a, int64_t a_rs, int64_t a_ks,
                      const real *b, int64_t b_ns, int64_t columns, real *to) {
    vreal acc[FEW][2];
    FULLY for (int i = 0; i < mr; i++) acc[i][0] = acc[i][1] = v_splat(0);
    for (int64_t kb = 0; kb < k; kb += VLANES) {
        FULLY for (int h = 0; h < 2; h++) {
            vreal v[VLANES];
            if (h * VLANES >= columns) break;
            load_block(v, b + h * VLANES * b_ns + kb, b_ns, columns - h * VLANES, k - kb);
            transpose_block(v);
            FULLY for (int q = 0; q < VLANES; q++) if (kb + q < k) {
                FULLY for (int i = 0; i < mr; i++) acc[i][h] =
                    v_fma(v_splat(a[i * a_rs + (kb + q) * a_ks]), v[q], acc[i][h]);
            }
        }
    }
    FULLY for (int i = 0; i < mr; i++) FULLY for (int h = 0; h < 2; h++)
        v_store(to + i * PANEL + h * VLANES, acc[i][h]);
}

#define DEFINE(mr, nv, unit_k)                                                                     \
    static void chain_##mr##_##nv##_##unit_k(int64_t k, const real *a, int64_t as, const real *b,  \
                                             int64_t b_ks, const real *from, int64_t ld_from,      \
                                             real *to, int64_t ld_to) {                            \
        chain(mr, nv, unit_k, k, a, as, b, b_ks, from, ld_from, to, ld_to);                        \
    }
#define DEFINE_MR(mr) DEFINE(mr, 1, 0) DEFINE(mr, 2, 0) DEFINE(mr, 1, 1) DEFINE(mr, 2, 1)
EACH_MR(DEFINE_MR)

#define ENTRY_MR(mr) {{chain_##mr##_1_0, chain_##mr##_2_0}, {chain_##mr##_1_1, chain_##mr##_2_1}},
static kernel *const kernels[MR][2][2] = {EACH_MR(ENTRY_MR)}; /* [mr - 1][unit_k][nv - 1] */

/* ---- epilogues ------------------------------------------------------------------------------ */

/* A finished tile: rows x columns at t (leading dimension PANEL, whole vectors), and where its
 * first element is in each operand of the epilogue. */
typedef struct {
    const real *t;
    int64_t rows, columns;
    real *c;
    int64_t ldc;
    const real *bias, *r;
    real *z, *s1, *s2;
    int64_t ldz, ldr;
} tile;

#define EACH_VECTOR                                                                                \
    for (int64_t i = 0; i < x->rows; i++)                                                          \
        for (int64_t n = 0, left = x->columns; left > 0; n += VLANES, left -= VLANES)

static void finish_store(const tile *x) {
    EACH_VECTOR store_upto(x->c + i * x->ldc + n, v_load(x->t + i * PANEL + n), left);
}

INLINE void finish_activation(const int row, vreal param, const tile *x) {
    EACH_VECTOR {
        vreal z = v_load(x->t + i * PANEL + n);
        if (x->bias) z = z + load_upto(x->bias + n, left);
        if (x->z) store_upto(x->z + i * x->ldz + n, z, left);
        store_upto(x->c + i * x->ldc + n, row < 0 ? z : act_f(row, param, z), left);
    }
}

INLINE void finish_derivative(const int row, vreal param, const tile *x) {
    EACH_VECTOR {
        vreal g = v_load(x->t + i * PANEL + n), r = load_upto(x->r + i * x->ldr + n, left);
        store_upto(x->c + i * x->ldc + n, act_d(row, param, g, r), left);
    }
}

/* coef by value: its vectors stay in registers, whatever the stores may alias */
INLINE void finish_update(const int row, const int states, const update_coef coef, const tile *x) {
    EACH_VECTOR {
        const int64_t at = i * x->ldc + n;
        vreal g = v_load(x->t + i * PANEL + n), w = load_upto(x->c + at, left);
        vreal s1 = states > 0 ? load_upto(x->s1 + at, left) : w;
        vreal s2 = states > 1 ? load_upto(x->s2 + at, left) : w;
        store_upto(x->c + at, update_row(row, &coef, w, g, &s1, &s2), left);
        if (states > 0) store_upto(x->s1 + at, s1, left);
        if (states > 1) store_upto(x->s2 + at, s2, left);
    }
}

static void finish(const chainrule_epilogue *e, const update_coef *coef, const tile *x) {
    const vreal param = v_splat((real)e->act_param);
    switch (e->kind) {
    case EPI_STORE:
        finish_store(x);
        break;
    case EPI_BIAS_ACT:
        switch (e->act) {
#define X(name, residual)                                                                          \
    case ACT_##name:                                                                               \
        finish_activation(ACT_##name, param, x);                                                   \
        break;
            ACTIVATION_ROWS(X)
#undef X
        default:
            finish_activation(-1, param, x);
        }
        break;
    case EPI_DACT:
        switch (e->act) {
#define X(name, residual)                                                                          \
    case ACT_##name:                                                                               \
        finish_derivative(ACT_##name, param, x);                                                   \
        break;
            ACTIVATION_ROWS(X)
#undef X
        default:
            finish_store(x);
        }
        break;
    case EPI_UPDATE:
        switch (e->update) {
#define X(name, states)                                                                            \
    case UPDATE_##name:                                                                            \
        finish_update(UPDATE_##name, states, *coef, x);                                            \
        break;
            UPDATE_ROWS(X)
#undef X
        }
        break;
    }
}

/* ---- blocking ------------------------------------------------------------------------------- */

/* How one thread goes about its rows [i0, i1) and panels [j0, j1). B and C are seen in panels of
 * columns: B(k, n) at b + n / PANEL * b_js + k * b_ks + n % PANEL, and C likewise. */
typedef struct {
    const chainrule_contract *g;
    int64_t i0, i1, j0, j1;
    int64_t m, n;       /* rows and panels of a block: all of them unless it must be kept */
    int64_t kc, mc;     /* parts of a block: terms of K, and rows */
    int64_t slots;      /* packed panels of B that are held while the row parts pass */
    int few;            /* a tile takes all rows, which are too few to repay packing B */
    int pack_a, pack_b; /* copy them into scratch, part by part */
    int keep;           /* unfinished tiles wait in scratch, because the update reads C */
    const real *b;
    real *c, *packed_a, *packed_b, *kept;
    int64_t b_ks, b_js, ldc, c_js;
    update_coef coef;
} plan;

/* By rows, unless that would have each thread pack the whole of B, or leave it few of them; an
 * update of panels by whole panels. */
static void divide(plan *x, int t, int team) {
    const chainrule_contract *g = x->g;
    const int64_t panels = ceil_div(g->n, PANEL);
    x->i0 = x->j0 = 0;
    x->i1 = g->m;
    x->j1 = panels;
    if (team == 1) return;
    const int packs = !g->b_panels.data && g->b_ns != 1;
    if (panels >= team && (g->c_panels.data || packs || g->m < 2 * MR * team))
        chainrule_part(panels, 1, t, team, &x->j0, &x->j1);
    else
        chainrule_part(g->m, 1, t, team, &x->i0, &x->i1);
}

/* What is packed must be used by several tiles. A is packed where its rows, or the terms of a row,
 * lie a page apart; B where its columns are given as rows, or its rows lie far apart. */
static void choose(plan *x) {
    const chainrule_contract *g = x->g;
    const int64_t rows = x->i1 - x->i0, panels = x->j1 - x->j0;
    const int64_t far = 2048 / sizeof(real);
    x->few = rows <= FEW;
    x->kc = x->few || g->k <= KC ? g->k : ceil_div(g->k, ceil_div(g->k, KC));
    x->keep = g->epilogue.kind == EPI_UPDATE && x->kc < g->k;
    x->pack_a = !x->few && panels >= 8 && (g->a_ks >= far || g->a_rs >= 2 * far);
    x->pack_b =
        !x->few && !g->b_panels.data && (g->b_ns != 1 || (g->b_ks >= far && rows >= 8 * MR));
    x->m = x->keep ? min64(rows, KEEP) : rows;
    x->n = x->keep ? min64(panels, KEEP / PANEL) : panels;
    x->mc = x->pack_a ? min64(x->m, MC) : x->m;
    x->slots = x->pack_b && x->mc < x->m ? x->n : 1;
}

static size_t size_b(const plan *x) {
    return x->g->b_panels.data ? 0 : (size_t)(x->slots * x->kc * PANEL);
}
static size_t size_a(const plan *x) {
    return x->pack_a ? (size_t)(ceil_div(x->mc, MR) * TILE_STEP(x->kc)) : 0;
}
static size_t size_kept(const plan *x) { return x->keep ? (size_t)(x->m * x->n * PANEL) : 0; }

size_t K(contract_scratch)(const chainrule_contract *g, int team) {
    size_t most = 0;
    for (int t = 0; t < team; t++) {
        plan x = {.g = g};
        divide(&x, t, team);
        choose(&x);
        const size_t size = size_a(&x) + size_b(&x) + size_kept(&x);
        if (size > most) most = size;
    }
    return most;
}

/* The epilogue of rows [i, i + rows) of panel j, whose chains are done. */
static void finish_tile(const plan *x, int64_t i, int64_t rows, int64_t j, const real *t) {
    const chainrule_epilogue *e = &x->g->epilogue;
    const int64_t n = j * PANEL, at = j * x->c_js + i * x->ldc;
    const tile done = {
        .t = t,
        .rows = rows,
        .columns = min64(x->g->n - n, PANEL),
        .c = x->c + at,
        .ldc = x->ldc,
        .bias = e->bias ? (const real *)e->bias + n : NULL,
        .z = e->z ? (real *)e->z + i * e->ldz + n : NULL,
        .ldz = e->ldz,
        .r = e->r ? (const real *)e->r + i * e->ldr + n : NULL,
        .ldr = e->ldr,
        .s1 = e->s1 ? (real *)e->s1 + at : NULL,
        .s2 = e->s2 ? (real *)e->s2 + at : NULL,
    };
    finish(e, &x->coef, &done);
}

/* Few rows, whole chains. Returns the first panel that is left to do. */
static int64_t run_few(const plan *x) {
    const chainrule_contract *g = x->g;
    const int64_t rows = x->i1 - x->i0;
    const real *a = (const real *)g->a + x->i0 * g->a_rs;
    real t[8 * PANEL] __attribute__((aligned(64)));
    int64_t j = x->j0;
    if (!g->b_panels.data && g->b_ns != 1) {
        for (; j < x->j1; j++) {
            const int64_t columns = min64(g->n - j * PANEL, PANEL);
            const real *b = x->b + j * x->b_js;
            switch (rows) {
#define X(mr)                                                                                      \
    case mr:                                                                                       \
        chain_few(mr, g->k, a, g->a_rs, g->a_ks, b, g->b_ns, columns, t);                          \
        break;
                EACH_FEW(X)
#undef X
            }
            finish_tile(x, x->i0, rows, j, t);
        }
    } else if (rows <= 2) {
        /* an unpacked B ends with its last column */
        const int64_t end = g->b_panels.data ? x->j1 : min64(x->j1, g->n / PANEL);
        const int64_t most = rows == 1 || MR > 6 ? 4 : 2;
        while (end - j >= 2) {
            const int64_t step = end - j >= most ? most : 2;
            const real *b = x->b + j * x->b_js;
#define WIDE(mr, panels)                                                                           \
    if (rows == mr && step == panels)                                                              \
    chain_wide(mr, panels, g->k, a, g->a_rs, g->a_ks, b, x->b_ks, x->b_js, t)
            WIDE(1, 2);
            WIDE(1, 4);
            WIDE(2, 2);
            WIDE(2, 4);
#undef WIDE
            for (int64_t p = 0; p < step; p++, j++)
                finish_tile(x, x->i0, rows, j, t + p * rows * PANEL);
        }
    }
    return j;
}

/* Rows [i, i + rows) of a panel: one block of the chains. */
static void run_tile(const plan *x, int64_t i, int64_t rows, int64_t j, int64_t k, int64_t kb,
                     const real *a, int64_t as, int unit_k, const real *b, int64_t b_ks,
                     real *kept) {
    const chainrule_contract *g = x->g;
    const int64_t columns = min64(g->n - j * PANEL, PANEL);
    const int nv = columns > VLANES ? 2 : 1, whole = columns == nv * VLANES;
    const int last = k + kb == g->k;
    kernel *const run = kernels[rows - 1][unit_k][nv - 1];
    real *c = x->c + j * x->c_js + i * x->ldc;
    real t[MR * PANEL] __attribute__((aligned(64)));

    const real *from = NULL;
    int64_t ld_from = PANEL;
    if (k > 0 && kept) {
        from = kept;
    } else if (k > 0 && whole) {
        from = c;
        ld_from = x->ldc;
    } else if (k > 0) {
        copy_rows(c, x->ldc, rows, columns, t, PANEL, PANEL);
        from = t;
    }
    if (from == c) { /* the next tile's lines, while this one is computed */
        for (int64_t r = rows; r < 2 * rows; r++) {
            __builtin_prefetch(c + r * x->ldc, 1);
            __builtin_prefetch(c + r * x->ldc + PANEL - 1, 1);
        }
    }
    if (whole && (last ? g->epilogue.kind == EPI_STORE : !kept)) {
        run(kb, a, as, b, b_ks, from, ld_from, c, x->ldc);
        return;
    }
    real *to = !last && kept ? kept : t;
    run(kb, a, as, b, b_ks, from, ld_from, to, PANEL);
    if (last) {
        finish_tile(x, i, rows, j, t);
    } else if (!kept) {
        copy_rows(t, PANEL, rows, columns, c, x->ldc, columns);
    }
}

/* tile q of a block of A to packed_a + q * TILE_STEP(kb), k-stride A_TILE */
static void pack_rows(const plan *x, const real *a, int64_t tiles, int64_t tall, int64_t extra,
                      int64_t kb) {
    const chainrule_contract *g = x->g;
    if (g->a_ks == 1) {
        for (int64_t q = 0; q < tiles; q++) {
            const int64_t rows = tall + (q < extra);
            transpose(a, g->a_rs, rows, kb, x->packed_a + q * TILE_STEP(kb), A_TILE, A_TILE);
            a += rows * g->a_rs;
        }
    } else {
        for (int64_t k = 0; k < kb; k++, a += g->a_ks) {
            const real *from = a;
            for (int64_t q = 0; q < tiles; q++) {
                const int64_t rows = tall + (q < extra);
                copy_rows(from, 0, 1, rows, x->packed_a + q * TILE_STEP(kb) + k * A_TILE, 0,
                          A_TILE);
                from += rows;
            }
        }
    }
}

/* Rows [i0, i1) of panels [j0, j1): blocks of K outside, then blocks of rows, then panels, so that
 * a block of a panel of B stays in L1 while the tiles of A pass. */
static void run_block(const plan *x, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const chainrule_contract *g = x->g;
    const int unit_k = g->a_ks == 1;
    int64_t k = 0;
    do {
        const int64_t kb = min64(x->kc, g->k - k);
        for (int64_t i = i0; i < i1; i += x->mc) {
            const int64_t rows = min64(x->mc, i1 - i), tiles = ceil_div(rows, MR);
            const real *a = (const real *)g->a + i * g->a_rs + k * g->a_ks;
            const int64_t tall = rows / tiles, extra = rows % tiles; /* heights differ by one */
            if (x->pack_a) pack_rows(x, a, tiles, tall, extra, kb);
            for (int64_t j = j0; j < j1; j++) {
                const int64_t columns = min64(g->n - j * PANEL, PANEL);
                const real *b = x->b + j * x->b_js + k * x->b_ks;
                int64_t b_ks = x->b_ks;
                if (!g->b_panels.data && (x->pack_b || columns < PANEL)) {
                    real *to = x->packed_b + (x->slots > 1 ? (j - j0) * x->kc * PANEL : 0);
                    if (i == i0) pack_panel(b, g->b_ks, g->b_ns, kb, columns, to);
                    b = to;
                    b_ks = PANEL;
                }
                int64_t at = i;
                for (int64_t q = 0; q < tiles; q++) {
                    const int64_t height = tall + (q < extra);
                    real *kept = x->kept ? x->kept + ((j - j0) * x->m + at - i0) * PANEL : NULL;
                    if (x->pack_a)
                        run_tile(x, at, height, j, k, kb, x->packed_a + q * TILE_STEP(kb), A_TILE,
                                 0, b, b_ks, kept);
                    else
                        run_tile(x, at, height, j, k, kb, a + (at - i) * g->a_rs,
                                 unit_k ? g->a_rs : g->a_ks, unit_k, b, b_ks, kept);
                    at += height;
                }
            }
        }
        k += kb;
    } while (k < g->k);
}

void K(contract)(const chainrule_contract *g, void *scratch, int t, int team) {
    plan x = {.g = g};
    divide(&x, t, team);
    if (x.i0 >= x.i1 || x.j0 >= x.j1) return;
    choose(&x);
    if (g->b_panels.data) {
        x.b = g->b_panels.data;
        x.b_ks = PANEL;
        x.b_js = g->b_panels.k * PANEL;
    } else {
        x.b = g->b;
        x.b_ks = g->b_ks;
        x.b_js = g->b_ns * PANEL;
    }
    if (g->c_panels.data) {
        x.c = g->c_panels.data;
        x.ldc = PANEL;
        x.c_js = g->c_panels.k * PANEL;
    } else {
        x.c = g->c;
        x.ldc = g->ldc;
        x.c_js = PANEL;
    }
    x.packed_b = scratch;
    if (x.pack_a) x.packed_a = x.packed_b + size_b(&x);
    if (x.keep) x.kept = x.packed_b + size_b(&x) + size_a(&x);
    if (g->epilogue.kind == EPI_UPDATE) x.coef = update_coefs(g->epilogue.coef);
    if (x.few) x.j0 = run_few(&x);
    for (int64_t i = x.i0; i < x.i1; i += x.m)
        for (int64_t j = x.j0; j < x.j1; j += x.n)
            run_block(&x, i, min64(i + x.m, x.i1), j, min64(j + x.n, x.j1));
}

/* ---- panels --------------------------------------------------------------------------------- */

void K(pack)(const void *b, int64_t b_ks, int64_t b_ns, chainrule_panels to, int t, int team) {
    int64_t begin, end;
    chainrule_part(ceil_div(to.n, PANEL), 1, t, team, &begin, &end);
    for (int64_t j = begin; j < end; j++)
        pack_panel((const real *)b + j * PANEL * b_ns, b_ks, b_ns, to.k,
                   min64(to.n - j * PANEL, PANEL), (real *)to.data + j * to.k * PANEL);
}

void K(unpack)(chainrule_panels from, void *b, int64_t b_ks, int64_t b_ns, int t, int team) {
    int64_t begin, end;
    chainrule_part(ceil_div(from.n, PANEL), 1, t, team, &begin, &end);
    for (int64_t j = begin; j < end; j++) {
        const real *panel = (const real *)from.data + j * from.k * PANEL;
        const int64_t columns = min64(from.n - j * PANEL, PANEL);
        real *to = (real *)b + j * PANEL * b_ns;
        if (b_ns == 1)
            copy_rows(panel, PANEL, from.k, columns, to, b_ks, columns);
        else
            transpose(panel, PANEL, from.k, columns, to, b_ns, from.k);
    }
}

void K(transpose_panels)(chainrule_panels from, chainrule_panels to, int64_t p0, int64_t p1) {
    for (int64_t j = p0; j < p1; j++) {
        const real *panel = (const real *)from.data + j * from.k * PANEL;
        for (int64_t k = 0; k < from.k; k += PANEL)
            transpose(panel + k * PANEL, PANEL, min64(from.k - k, PANEL),
                      min64(from.n - j * PANEL, PANEL),
                      (real *)to.data + (k / PANEL * to.k + j * PANEL) * PANEL, PANEL, PANEL);
    }
}
