"""The recurrent cells, one family a file: each a Keras layer beside its lowered form."""
