/* The floor under every executor bridge: a call handed to a waiting thread and its answer handed back, with the GIL going along.
 * Two thread switches and two GIL hand-overs, nothing else. A Python extension: switch_floor.round_trips(n). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <semaphore.h>

struct link {
    sem_t work, done;
    PyInterpreterState *interpreter;
    long left;
};

static void *answer(void *argument)
{
    struct link *link = argument;
    PyThreadState *state = PyThreadState_New(link->interpreter);
    for (long i = link->left; i > 0; i--) {
        sem_wait(&link->work);
        PyEval_RestoreThread(state);    /* the worker takes the GIL, as it must to call anything */
        PyEval_SaveThread();
        sem_post(&link->done);
    }
    PyEval_RestoreThread(state);
    PyThreadState_Clear(state);
    PyThreadState_DeleteCurrent();
    return NULL;
}

static PyObject *round_trips(PyObject *module, PyObject *argument)
{
    (void)module;
    struct link link = {.interpreter = PyInterpreterState_Get(), .left = PyLong_AsLong(argument)};
    pthread_t thread;
    if (PyErr_Occurred()) {
        return NULL;
    }
    sem_init(&link.work, 0, 0);
    sem_init(&link.done, 0, 0);
    int error = pthread_create(&thread, NULL, answer, &link);
    if (error) {
        return PyErr_Format(PyExc_OSError, "pthread_create: error %d", error);
    }
    for (long i = link.left; i > 0; i--) {
        PyThreadState *state = PyEval_SaveThread();
        sem_post(&link.work);
        sem_wait(&link.done);
        PyEval_RestoreThread(state);
    }
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"round_trips", round_trips, METH_O, "Make so many round trips to a thread and back."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "switch_floor", .m_methods = methods};

PyMODINIT_FUNC PyInit_switch_floor(void)
{
    return PyModuleDef_Init(&definition);
}
