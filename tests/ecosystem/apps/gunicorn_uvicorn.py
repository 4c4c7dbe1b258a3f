"""gunicorn's configuration for uvicorn workers on fastloop: `gunicorn -c gunicorn_uvicorn.py package.module:app`."""

from uvicorn_worker import UvicornWorker


class FastloopWorker(UvicornWorker):
    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | {"loop": "fastloop:new_event_loop"}


worker_class = FastloopWorker
