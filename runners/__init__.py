"""One folder per published system; imported as privlm.runners."""
