"""The ASGI application: the ML-backend routes, the health of the server, the page."""
