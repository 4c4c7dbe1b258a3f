/* dealloc.c - objects whose end was put off, so that a chain of them does not use up the C stack.
 * See fl_dealloc_bounded() in state.h. */
#include "state.h"

bool
fl_dealloc_put_off(fl_state *st, PyObject *self, destructor end)
{
    if (st->n_put_off == st->room_put_off) {
        size_t room = st->room_put_off == 0 ? 64 : 2 * st->room_put_off;
        struct fl_put_off *items = PyMem_RawRealloc(st->put_off, room * sizeof(*items));
        if (items == NULL) {
            return false;
        }
        st->put_off = items;
        st->room_put_off = room;
    }
    st->put_off[st->n_put_off++] = (struct fl_put_off){self, end};
    return true;
}

void
fl_dealloc_rest(fl_state *st)
{
    while (st->n_put_off > 0) {
        struct fl_put_off item = st->put_off[--st->n_put_off];
        item.end(item.object);
    }
    if (st->room_put_off > 0) {
        PyMem_RawFree(st->put_off);
        st->put_off = NULL;
        st->room_put_off = 0;
    }
}
