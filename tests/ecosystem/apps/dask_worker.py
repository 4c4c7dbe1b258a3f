"""`dask worker` on fastloop, nanny included: the nanny's child process imports this file before it makes its loop."""

import fastloop

fastloop.install()

if __name__ == "__main__":
    from distributed.cli.dask_worker import main

    main()
