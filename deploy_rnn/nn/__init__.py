"""The networks: recurrent layers in plain tensor operations. Imports only torch."""
