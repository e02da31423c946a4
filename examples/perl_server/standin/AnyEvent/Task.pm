package AnyEvent::Task;

# Stands in where AnyEvent::Task is not installed: the original's module of this name is documentation.
use strict;
use warnings;

our $VERSION = '0.805';

1;
