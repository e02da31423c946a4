package AnyEvent::Task;

# Replaces the module where AnyEvent::Task is not installed. The original has only documentation.
use strict;
use warnings;

our $VERSION = '0.805';

1;
