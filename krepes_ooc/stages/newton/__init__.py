"""Stage newton: one damped Gauss-Newton step of the SSL loss, spectrum and moments -> newton."""
