/* ready.c - memory of the ready ring. */
#include "ready.h"

enum { FL_READY_FIRST_CAPACITY = 256 };

int
fl_ready_open(fl_ready *q)
{
    q->slots = PyMem_Malloc(FL_READY_FIRST_CAPACITY * sizeof(uintptr_t));
    if (q->slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    q->capacity = FL_READY_FIRST_CAPACITY;
    q->head = q->tail = 0;
    return 0;
}

void
fl_ready_close(fl_ready *q)
{
    PyMem_Free(q->slots);
    q->slots = NULL;
    q->capacity = 0;
    q->head = q->tail = 0;
}

int
fl_ready_grow(fl_ready *q)
{
    size_t count = fl_ready_len(q);
    size_t capacity = q->capacity * 2;
    uintptr_t *slots = NULL;

    if (capacity == 0) { /* code that ran since the caller looked has closed the loop */
        PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
        return -1;
    }
    if (capacity <= SIZE_MAX / sizeof(uintptr_t)) {
        slots = PyMem_Malloc(capacity * sizeof(uintptr_t));
    }
    if (slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        slots[i] = *fl_ready_slot(q, q->head + i);
    }
    PyMem_Free(q->slots);
    q->slots = slots;
    q->capacity = capacity;
    q->head = 0;
    q->tail = count;
    return 0;
}
