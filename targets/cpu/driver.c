/* Runs a plan on the CPU: a pool of persistent threads, a barrier after each launch, one call a step.
 *
 * Linked with the kernels' object file and with a generated table (`tokc_kernels`), so that the result needs
 * nothing but libc. Every thread walks the same launch list and each kernel divides its own work by
 * (tid, threads); the barrier orders one launch before the next.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() __asm__ volatile("yield")
#endif

/* A worker that waits for a step spins while the steps follow each other closely, for at most SPIN_NS after one;
 * after a longer gap it sleeps at once, until steps come closely again: an idle process takes no core. */
#define SPIN_NS 500000
#define SPINS_A_LOOK 64
/* A thread at a barrier spins this often before it offers its core, which the one that it waits for may need. */
#define BARRIER_SPINS 1000
/* What is fetched of a thread's share of the next weights while it waits at the barrier before. */
#define AHEAD_BYTES 16384
#define LINE_BYTES 64

typedef void (*kernel_fn)(void *const *pointers, int32_t rows, int32_t tid, int32_t threads);
extern const kernel_fn tokc_kernels[];
extern const int32_t tokc_kernel_count;

typedef struct {
    int32_t kernel;        /* index into tokc_kernels */
    int32_t rows;          /* which of the step's row counts: 0 tokens, 1 logit rows */
    int32_t first_pointer; /* index of the first of its pointers */
    const uint8_t *ahead;  /* the weights of the next launch that streams some, or null */
    int64_t ahead_bytes;
} launch_t;

typedef struct {
    const launch_t *launches;
    int32_t count;
    void *const *pointers;
    const int32_t *rows;
    int64_t *nanoseconds; /* null, or [threads][count][2]: in the kernel, at its barrier */
} step_t;

typedef struct pool pool_t;
typedef void (*job_fn)(pool_t *pool, int32_t tid);

struct pool {
    _Alignas(64) atomic_int epoch;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int phase;
    _Alignas(64) atomic_int sleepers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int32_t threads;
    job_fn job;
    void *argument;
    pthread_t *workers;
    struct worker *seats;
};

struct worker {
    pool_t *pool;
    int32_t tid;
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void barrier(pool_t *pool) {
    if (pool->threads == 1) return;
    int phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase; spins++) {
        PAUSE();
#if defined(__linux__)
        if (spins > BARRIER_SPINS) sched_yield();
#endif
    }
}

static int await_epoch(pool_t *pool, int seen, int *closely) {
    int64_t start = now_ns();
    if (*closely) {
        do {
            for (int spins = 0; spins < SPINS_A_LOOK; spins++) {
                int epoch = atomic_load_explicit(&pool->epoch, memory_order_acquire);
                if (epoch != seen) return epoch;
                PAUSE();
            }
        } while (now_ns() - start < SPIN_NS);
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->epoch) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    *closely = now_ns() - start < SPIN_NS;
    return atomic_load(&pool->epoch);
}

static void *work(void *argument) {
    struct worker *seat = argument;
    pool_t *pool = seat->pool;
    int seen = 0, closely = 1;
    for (;;) {
        seen = await_epoch(pool, seen, &closely);
        if (pool->job == NULL) return NULL;
        pool->job(pool, seat->tid);
        barrier(pool);
    }
}

static void run(pool_t *pool, job_fn job, void *argument) {
    pool->job = job;
    pool->argument = argument;
    atomic_fetch_add(&pool->epoch, 1);
    if (pool->threads > 1 && atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    if (job == NULL) return;
    job(pool, 0);
    barrier(pool);
}

void tokc_close(pool_t *pool) {
    run(pool, NULL, NULL);
    for (int32_t i = 1; i < pool->threads; i++) pthread_join(pool->workers[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    free(pool->workers);
    free(pool->seats);
    free(pool);
}

/* Returns null when a thread cannot be made. */
pool_t *tokc_open(int32_t threads) {
#if defined(__linux__) && defined(__x86_64__)
    syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* AMX tile data */);
#endif
    pool_t *pool = NULL;
    if (posix_memalign((void **)&pool, 64, sizeof(pool_t)) != 0) return NULL;
    atomic_init(&pool->epoch, 0);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->phase, 0);
    atomic_init(&pool->sleepers, 0);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = threads;
    pool->workers = calloc((size_t)threads, sizeof(pthread_t));
    pool->seats = calloc((size_t)threads, sizeof(struct worker));
    for (int32_t i = 1; i < threads; i++) {
        pool->seats[i] = (struct worker){pool, i};
        if (pthread_create(&pool->workers[i], NULL, work, &pool->seats[i]) != 0) {
            pool->threads = i;
            tokc_close(pool);
            return NULL;
        }
    }
    return pool;
}

static void fetch_ahead(const launch_t *launch, int32_t tid, int32_t threads) {
    const uint8_t *low = launch->ahead + launch->ahead_bytes / threads * tid;
    int64_t share = launch->ahead_bytes / threads, most = share < AHEAD_BYTES ? share : AHEAD_BYTES;
    for (int64_t at = 0; at < most; at += LINE_BYTES) __builtin_prefetch(low + at, 0, 2);
}

static void step(pool_t *pool, int32_t tid) {
    const step_t *s = pool->argument;
    int64_t *spent = s->nanoseconds ? s->nanoseconds + (int64_t)tid * s->count * 2 : NULL;
    int64_t start = spent ? now_ns() : 0;
    for (int32_t i = 0; i < s->count; i++) {
        const launch_t *launch = &s->launches[i];
        tokc_kernels[launch->kernel](s->pointers + launch->first_pointer, s->rows[launch->rows], tid, pool->threads);
        if (launch->ahead) fetch_ahead(launch, tid, pool->threads);
        int64_t done = spent ? now_ns() : 0;
        if (i + 1 < s->count) barrier(pool);
        if (spent) {
            int64_t after = now_ns();
            spent[2 * i] += done - start;
            spent[2 * i + 1] += after - done;
            start = after;
        }
    }
}

/* Runs one step. `rows` holds the token count and the logit row count; `nanoseconds` may be null. */
void tokc_step(pool_t *pool, const launch_t *launches, int32_t count, void *const *pointers, const int32_t *rows,
               int64_t *nanoseconds) {
    step_t s = {launches, count, pointers, rows, nanoseconds};
    run(pool, step, &s);
}

typedef struct {
    uint8_t *data;
    int64_t pieces;      /* of a page: heads, or their elements where slots lie side by side */
    int64_t piece_bytes; /* of a slot */
} cache_t;

typedef struct {
    const cache_t *caches;
    int32_t count, page, moves;
    const int32_t *sources, *targets;
} move_t;

static void move_entry(const cache_t *cache, int64_t page, int64_t source, int64_t target) {
    int64_t bytes = cache->piece_bytes, stride = page * bytes;
    const uint8_t *from = cache->data + source / page * cache->pieces * stride + source % page * bytes;
    uint8_t *to = cache->data + target / page * cache->pieces * stride + target % page * bytes;
    for (int64_t i = 0; i < cache->pieces; i++, from += stride, to += stride) {
        if (bytes == 2) __builtin_memcpy(to, from, 2); /* keys as halves */
        else __builtin_memmove(to, from, (size_t)bytes);
    }
}

static void move(pool_t *pool, int32_t tid) {
    const move_t *m = pool->argument;
    for (int32_t i = tid; i < m->count; i += pool->threads)
        for (int32_t j = 0; j < m->moves; j++) move_entry(&m->caches[i], m->page, m->sources[j], m->targets[j]);
}

/* Copies entries of each cache, one after the other: slot e % page of page e / page. */
void tokc_move(pool_t *pool, const cache_t *caches, int32_t count, int32_t page, const int32_t *sources,
               const int32_t *targets, int32_t moves) {
    move_t m = {caches, count, page, moves, sources, targets};
    run(pool, move, &m);
}

typedef struct {
    const uint64_t *words;
    size_t count;
    size_t ahead_words; /* 0: the CPU's own prefetchers alone */
    int64_t streams;    /* parts of a thread's share that are read side by side */
    _Atomic uint64_t sum;
} read_t;

static uint64_t read_part(const uint64_t *words, size_t count, int64_t streams, size_t ahead) {
    size_t part = count / (size_t)streams / 64 * 64;
    uint64_t sums[64] = {0}, sum = 0;
    for (size_t i = 0; i < part; i += 64) {
        for (int64_t stream = 0; stream < streams; stream++) {
            const uint64_t *at = words + (size_t)stream * part + i;
            if (ahead)
                for (size_t j = 0; j < 64; j += 8) __builtin_prefetch(at + ahead + j, 0, 2);
            for (size_t j = 0; j < 64; j++) sums[j] ^= at[j];
        }
    }
    for (size_t j = 0; j < 64; j++) sum ^= sums[j];
    return sum;
}

static void read_words(pool_t *pool, int32_t tid) {
    read_t *r = pool->argument;
    size_t share = r->count / (size_t)pool->threads / 64 * 64;
    atomic_fetch_xor(&r->sum, read_part(r->words + share * (size_t)tid, share, r->streams, r->ahead_words));
}

/* Reads `bytes` once over all threads, in the given way; returns bytes a second. */
double tokc_read_bandwidth(pool_t *pool, const void *data, int64_t bytes, int64_t streams, int64_t ahead_bytes) {
    read_t r = {data, (size_t)bytes / 8, (size_t)ahead_bytes / 8, streams, 0};
    int64_t start = now_ns();
    run(pool, read_words, &r);
    return (double)bytes / ((double)(now_ns() - start) * 1e-9);
}
