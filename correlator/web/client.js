// The browser client is still to come.
