package AnyEvent::Socket;

# Replaces the module where AnyEvent is not installed, for programs that load it without calling it.
use strict;
use warnings;

sub import { }

1;
