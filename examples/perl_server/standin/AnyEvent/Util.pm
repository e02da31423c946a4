package AnyEvent::Util;

# Stands in where AnyEvent is not installed, for programs that load this module and call none of it.
use strict;
use warnings;

sub import { }

1;
