/* ready.h - the ready queue: a growing ring of tagged pointers.
 *
 * An entry owns a reference to what it points to. Its two low bits say what
 * that is, so that a turn of the loop needs no type check:
 *   FL_READY_HANDLE  fl_handle: run the callback
 *   FL_READY_TASK    fl_task: step the coroutine
 *   FL_READY_WATCH   fl_watch: a C watcher with events; owns watch->owner
 */
#ifndef FASTLOOP_READY_H
#define FASTLOOP_READY_H

#include "state.h"

enum { FL_READY_HANDLE = 0, FL_READY_TASK = 1, FL_READY_WATCH = 2, FL_READY_TAGS = 3 };

typedef struct {
    uintptr_t *slots;
    size_t capacity; /* a power of two; 0: closed */
    size_t head;     /* next to pop */
    size_t tail;     /* next free; tail - head entries wait */
} fl_ready;

int fl_ready_open(fl_ready *q);
void fl_ready_close(fl_ready *q);
int fl_ready_grow(fl_ready *q);

static inline size_t
fl_ready_len(const fl_ready *q)
{
    return q->tail - q->head;
}

/* The entry at a position from head to tail. */
static inline uintptr_t *
fl_ready_slot(const fl_ready *q, size_t position)
{
    return &q->slots[position & (q->capacity - 1)];
}

/* Append an entry; takes over the caller's reference only on success. -1 with
 * MemoryError, or RuntimeError if the queue is closed. */
static inline int
fl_ready_push(fl_ready *q, void *object, int tag)
{
    if (fl_ready_len(q) == q->capacity && fl_ready_grow(q) < 0) {
        return -1;
    }
    *fl_ready_slot(q, q->tail++) = (uintptr_t)object | (uintptr_t)tag;
    return 0;
}

static inline uintptr_t
fl_ready_pop(fl_ready *q)
{
    return *fl_ready_slot(q, q->head++);
}

#endif
