/* timers.c - the unsorted list and the binary heap behind timers.h. */
#include "timers.h"

static inline bool
timer_before(const fl_timer *a, const fl_timer *b)
{
    return a->due < b->due || (a->due == b->due && a->order < b->order);
}

static inline void
array_put(fl_timer_array *a, size_t index, fl_timer *h)
{
    a->items[index] = h;
    h->index = index;
}

static int
array_reserve(fl_timer_array *a, size_t need)
{
    if (need <= a->cap) {
        return 0;
    }
    size_t cap = a->cap == 0 ? 64 : a->cap * 2;
    while (cap < need) {
        cap *= 2;
    }
    fl_timer **items = PyMem_Realloc(a->items, cap * sizeof(*items));
    if (items == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    a->items = items;
    a->cap = cap;
    return 0;
}

static void
heap_up(fl_timer_array *heap, size_t index, fl_timer *h)
{
    while (index > 0) {
        size_t parent = (index - 1) / 2;
        if (!timer_before(h, heap->items[parent])) {
            break;
        }
        array_put(heap, index, heap->items[parent]);
        index = parent;
    }
    array_put(heap, index, h);
}

static void
heap_down(fl_timer_array *heap, size_t index, fl_timer *h)
{
    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= heap->len) {
            break;
        }
        if (child + 1 < heap->len &&
            timer_before(heap->items[child + 1], heap->items[child])) {
            child++;
        }
        if (!timer_before(heap->items[child], h)) {
            break;
        }
        array_put(heap, index, heap->items[child]);
        index = child;
    }
    array_put(heap, index, h);
}

/* Unlink from the heap; the reference goes to the caller. */
static void
heap_take(fl_timer_array *heap, fl_timer *h)
{
    size_t index = h->index;
    fl_timer *last = heap->items[--heap->len];
    if (last != h) {
        if (index > 0 && timer_before(last, heap->items[(index - 1) / 2])) {
            heap_up(heap, index, last);
        }
        else {
            heap_down(heap, index, last);
        }
    }
    h->handle.where = FL_TIMER_IDLE;
}

static void
fresh_take(fl_timer_array *fresh, fl_timer *h)
{
    fl_timer *last = fresh->items[--fresh->len];
    if (last != h) {
        array_put(fresh, h->index, last);
    }
    h->handle.where = FL_TIMER_IDLE;
}

void
fl_timers_open(fl_timers *t)
{
    *t = (fl_timers){.fresh_min = INT64_MAX};
}

void
fl_timers_close(fl_timers *t)
{
    /* Dropping a handle can run any code, which may look at these timers. */
    fl_timer_array arrays[2] = {t->fresh, t->heap};
    t->fresh = t->heap = (fl_timer_array){0};
    t->fresh_min = INT64_MAX;
    for (int a = 0; a < 2; a++) {
        for (size_t i = 0; i < arrays[a].len; i++) {
            arrays[a].items[i]->handle.where = FL_TIMER_IDLE;
        }
        for (size_t i = 0; i < arrays[a].len; i++) {
            Py_DECREF(arrays[a].items[i]);
        }
        PyMem_Free(arrays[a].items);
    }
}

int
fl_timers_add(fl_timers *t, fl_timer *h)
{
    if (array_reserve(&t->fresh, t->fresh.len + 1) < 0) {
        return -1;
    }
    h->order = t->next_order++;
    h->handle.where = FL_TIMER_FRESH;
    array_put(&t->fresh, t->fresh.len++, (fl_timer *)Py_NewRef(h));
    if (h->due < t->fresh_min) {
        t->fresh_min = h->due;
    }
    return 0;
}

void
fl_timers_remove(fl_timers *t, fl_timer *h)
{
    if (h->handle.where == FL_TIMER_FRESH) {
        fresh_take(&t->fresh, h);
        if (t->fresh.len == 0) {
            t->fresh_min = INT64_MAX;
        }
    }
    else if (h->handle.where == FL_TIMER_HEAPED) {
        heap_take(&t->heap, h);
    }
    else {
        return;
    }
    Py_DECREF(h);
}

static int
heap_fresh(fl_timers *t)
{
    if (array_reserve(&t->heap, t->heap.len + t->fresh.len) < 0) {
        return -1;
    }
    for (size_t i = 0; i < t->fresh.len; i++) {
        fl_timer *h = t->fresh.items[i];
        h->handle.where = FL_TIMER_HEAPED;
        heap_up(&t->heap, t->heap.len++, h);
    }
    t->fresh.len = 0;
    t->fresh_min = INT64_MAX;
    return 0;
}

int
fl_timers_first(fl_timers *t, fl_timer **first)
{
    if (t->fresh.len > 0 && heap_fresh(t) < 0) {
        return -1;
    }
    *first = t->heap.len > 0 ? t->heap.items[0] : NULL;
    return 0;
}

int
fl_timers_pop_due(fl_timers *t, int64_t now, fl_timer **h)
{
    if (t->fresh_min <= now && heap_fresh(t) < 0) {
        return -1;
    }
    if (t->heap.len == 0 || t->heap.items[0]->due > now) {
        return 0;
    }
    *h = t->heap.items[0];
    heap_take(&t->heap, *h);
    return 1;
}

void
fl_timers_sort_anew(fl_timers *t)
{
    t->fresh_min = INT64_MAX;
    for (size_t i = 0; i < t->fresh.len; i++) {
        fl_timer *h = t->fresh.items[i];
        h->due = fl_timer_due(true, h->when);
        t->fresh_min = h->due < t->fresh_min ? h->due : t->fresh_min;
    }
    for (size_t i = 0; i < t->heap.len; i++) { /* the first i are a heap again */
        fl_timer *h = t->heap.items[i];
        h->due = fl_timer_due(true, h->when);
        heap_up(&t->heap, i, h);
    }
}
