/* streams_stock.c - is it a stock asyncio.StreamReader, and what does it hold?
 *
 * C code does for a reader what asyncio's methods would do as long as nobody has
 * replaced one of those, on its class or on the object. The attributes of the reader
 * stay the truth. They are read out of its __dict__, as no class attribute can be in
 * their place while the classes are what they were when they were imported.
 */
#include "stream.h"

/* ---- classes ---------------------------------------------------------------- */

/* The methods that C code stands for, or leaves out where they would do nothing. */
static const char *const method_names[] = {
    "feed_data", "read", "readline", "readuntil", "readexactly",
    "_wait_for_data", "_wakeup_waiter", "_maybe_resume_transport",
};
enum { METHODS = sizeof(method_names) / sizeof(*method_names) };

/* By fl_reader_field. */
static const char *const field_names[FL_READER_FIELDS] = {
    "_limit", "_loop", "_buffer", "_eof", "_waiter", "_exception", "_transport", "_paused",
};

/* The functions of `names` in a class, by name. None if one is not of the module with
 * these `globals` (any, if NULL): somebody has replaced it already. */
static PyObject *
functions_of(PyTypeObject *type, const char *const *names, int count, PyObject *globals)
{
    PyObject *functions = PyDict_New(), *function;
    bool ours = true;

    for (int i = 0; functions != NULL && ours && i < count; i++) {
        function = PyObject_GetAttrString((PyObject *)type, names[i]);
        ours = function != NULL && PyFunction_Check(function) &&
               (globals == NULL || PyFunction_GET_GLOBALS(function) == globals);
        PyErr_Clear(); /* there is none */
        if (ours && PyDict_SetItemString(functions, names[i], function) < 0) {
            Py_CLEAR(functions);
        }
        Py_XDECREF(function);
    }
    if (functions != NULL && !ours) {
        Py_SETREF(functions, Py_NewRef(Py_None));
    }
    return functions;
}

static PyObject *
globals_of(const char *module_name)
{
    PyObject *module = PyImport_ImportModule(module_name);

    Py_XDECREF(module); /* sys.modules has it */
    return module == NULL ? NULL : PyModule_GetDict(module);
}

int
fl_streams_import(fl_stream_state *ss)
{
    static const char *const data_received[] = {"data_received"};
    PyObject *globals = globals_of("asyncio.streams");

    if (globals == NULL) {
        return -1;
    }
    for (int i = 0; i < FL_READER_FIELDS; i++) {
        ss->reader_fields[i] = PyUnicode_InternFromString(field_names[i]);
        if (ss->reader_fields[i] == NULL) {
            return -1;
        }
    }
    ss->protocol_methods = functions_of(ss->StreamReaderProtocol, data_received, 1, globals);
    ss->reader_methods = functions_of(ss->StreamReader, method_names, METHODS, globals);
    return ss->protocol_methods == NULL || ss->reader_methods == NULL ? -1 : 0;
}

int
fl_streams_import_ours(fl_stream_state *ss)
{
    PyObject *module = PyImport_ImportModule("fastloop._streams");
    PyObject *type = module == NULL ? NULL : PyObject_GetAttrString(module, "StreamReader");

    Py_XDECREF(module);
    if (type == NULL) {
        return -1;
    }
    if (((PyTypeObject *)type)->tp_base != ss->StreamReader) { /* asyncio's name is somebody's */
        Py_DECREF(type);
        return -1;
    }
    ss->our_reader_methods = functions_of((PyTypeObject *)type, method_names, METHODS, NULL);
    if (ss->our_reader_methods == NULL) {
        Py_DECREF(type);
        return -1;
    }
    ss->OurStreamReader = (PyTypeObject *)type;
    return 0;
}

static bool
has_methods(PyTypeObject *type, PyObject *methods)
{
    PyObject *name, *method, *found;
    Py_ssize_t pos = 0;

    while (PyDict_Next(methods, &pos, &name, &method)) {
        found = PyObject_GetAttr((PyObject *)type, name);
        Py_XDECREF(found);
        if (found != method) {
            PyErr_Clear();
            return false;
        }
    }
    return true;
}

/* No property or other attribute of the class hides what is in an object's __dict__. */
static bool
shows_fields(fl_stream_state *ss, PyTypeObject *type)
{
    if (type->tp_getattro != PyObject_GenericGetAttr ||
        type->tp_setattro != PyObject_GenericSetAttr) {
        return false;
    }
    for (int i = 0; i < FL_READER_FIELDS; i++) {
        PyObject *found = PyObject_GetAttr((PyObject *)type, ss->reader_fields[i]);
        if (found != NULL) {
            Py_DECREF(found);
            return false;
        }
        PyErr_Clear();
    }
    return true;
}

/* Whether type's version is *version: then it is as it was when looked at. */
static inline bool
is_unchanged(PyTypeObject *type, unsigned version)
{
    return type->tp_version_tag != 0 && type->tp_version_tag == version;
}

static bool
reader_class_is_stock(fl_stream_state *ss, PyTypeObject *type, PyObject *methods,
                      unsigned *version)
{
    if (is_unchanged(type, *version)) {
        return true;
    }
    if (methods == Py_None || !has_methods(type, methods) || !shows_fields(ss, type)) {
        return false;
    }
    *version = type->tp_version_tag;
    return true;
}

/* Exactly an asyncio.StreamReader or our subclass, and the class what it was. */
static bool
is_stock_reader(fl_stream_state *ss, PyObject *reader)
{
    bool ours = Py_IS_TYPE(reader, ss->OurStreamReader);

    if (ours && is_unchanged(ss->OurStreamReader, ss->our_reader_version)) {
        return true; /* nor is its base class changed: that would have changed it, too */
    }
    return (ours || Py_IS_TYPE(reader, ss->StreamReader)) &&
           reader_class_is_stock(ss, ss->StreamReader, ss->reader_methods,
                                 &ss->reader_version) &&
           (!ours || reader_class_is_stock(ss, ss->OurStreamReader, ss->our_reader_methods,
                                           &ss->our_reader_version));
}

static bool
protocol_class_is_stock(fl_stream_state *ss)
{
    PyTypeObject *type = ss->StreamReaderProtocol;

    if (is_unchanged(type, ss->protocol_version)) {
        return true;
    }
    if (ss->protocol_methods == Py_None || !has_methods(type, ss->protocol_methods)) {
        return false;
    }
    ss->protocol_version = type->tp_version_tag;
    return true;
}

/* ---- readers ---------------------------------------------------------------- */

PyObject *
fl_reader_attribute(PyObject *attributes, PyObject *name)
{
    PyObject *value = PyDict_GetItemWithError(attributes, name);

    if (value == NULL && PyErr_Occurred()) {
        PyErr_Clear(); /* of a foreign key's __eq__ */
    }
    return value;
}

PyObject *
fl_reader_get(const fl_reader *r, fl_reader_field field)
{
    PyObject *name, *value;
    Py_ssize_t pos = field; /* there, unless somebody has deleted one and set it again */

    if (PyDict_Next(r->attributes, &pos, &name, &value) && name == r->names[field]) {
        return value;
    }
    /* no lookup: a foreign key's __eq__ could drop what was borrowed before */
    for (pos = 0; PyDict_Next(r->attributes, &pos, &name, &value);) {
        if (name == r->names[field]) {
            return value;
        }
    }
    return NULL;
}

/* None of the attributes that somebody has added replaces a method. */
static bool
replaces_no_method(fl_stream_state *ss, PyObject *attributes)
{
    PyObject *name, *method;
    Py_ssize_t pos = 0;

    if (PyDict_GET_SIZE(attributes) == FL_READER_FIELDS) {
        return true; /* there is none */
    }
    while (PyDict_Next(ss->reader_methods, &pos, &name, &method)) {
        if (fl_reader_attribute(attributes, name) != NULL) {
            return false;
        }
    }
    return true;
}

bool
fl_reader_look(fl_stream_state *ss, PyObject *reader, fl_reader *r)
{
    PyObject *buffer;

    if (!is_stock_reader(ss, reader)) {
        return false;
    }
    r->attributes = PyObject_GenericGetDict(reader, NULL);
    if (r->attributes == NULL) {
        PyErr_Clear();
        return false;
    }
    r->object = Py_NewRef(reader);
    r->names = ss->reader_fields;
    r->buffer = NULL;
    if (!replaces_no_method(ss, r->attributes)) {
        fl_reader_done(r);
        return false;
    }
    buffer = fl_reader_get(r, FL_READER_BUFFER);
    if (buffer != NULL && PyByteArray_CheckExact(buffer) &&
        fl_reader_get(r, FL_READER_EOF) == Py_False) {
        r->buffer = buffer;
    }
    return true;
}

/* A strong reference to what a weakref refers to; NULL if it is gone. */
static PyObject *
dereference(PyObject *weakref)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object = NULL;
    if (PyWeakref_GetRef(weakref, &object) < 0) {
        PyErr_Clear();
    }
    return object;
#else
    PyObject *object = PyWeakref_GetObject(weakref);
    return object == Py_None ? NULL : Py_XNewRef(object);
#endif
}

/* protocol.<name> out of its __dict__, owned; NULL without an exception: it is not there. */
static PyObject *
protocol_attribute(PyObject *protocol, PyObject *name)
{
    PyObject *attributes = PyObject_GenericGetDict(protocol, NULL), *value;

    if (attributes == NULL) {
        PyErr_Clear();
        return NULL;
    }
    value = Py_XNewRef(fl_reader_attribute(attributes, name));
    Py_DECREF(attributes);
    return value;
}

bool
fl_streams_protocol_is_stock(fl_stream_state *ss, PyObject *protocol)
{
    PyObject *own;

    if (!protocol_class_is_stock(ss)) {
        return false;
    }
    own = protocol_attribute(protocol, ss->str_data_received);
    Py_XDECREF(own);
    return own == NULL;
}

PyObject *
fl_streams_reader_ref(fl_stream_state *ss, PyObject *protocol)
{
    PyObject *weakref = protocol_attribute(protocol, ss->str__stream_reader_wr);

    if (weakref != NULL && !PyWeakref_CheckRefExact(weakref)) {
        Py_CLEAR(weakref);
    }
    return weakref;
}

/* The reader of a stock protocol, owned, or NULL. */
static PyObject *
reader_of(fl_stream_state *ss, PyObject *protocol)
{
    PyObject *weakref = fl_streams_reader_ref(ss, protocol);
    PyObject *reader = weakref == NULL ? NULL : dereference(weakref);

    Py_XDECREF(weakref);
    return reader;
}

bool
fl_streams_open(fl_state *st, PyObject *protocol, fl_reader *r)
{
    PyObject *reader = NULL;
    bool open;

    Py_INCREF(protocol); /* somebody's data_received() may be a descriptor with code */
    if (fl_streams_protocol_is_stock(st->stream, protocol)) {
        reader = reader_of(st->stream, protocol);
    }
    open = reader != NULL && fl_reader_look(st->stream, reader, r);
    if (open && r->buffer == NULL) {
        fl_reader_done(r);
        open = false;
    }
    Py_XDECREF(reader);
    Py_DECREF(protocol);
    return open;
}
