"""An ASGI application for hypercorn, each of whose workers imports this module before it makes its loop."""

import fastloop
from asgi_app import plain

fastloop.install()

app = plain
