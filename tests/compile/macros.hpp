// SPDX-License-Identifier: Apache-2.0
/// \file Words that headers of others define as macros. A host may include those before ours.

// Qt, unless QT_NO_KEYWORDS is given
#define slots
#define signals public
#define emit
#define foreach(variable, container) for (variable : container)
#define forever for (;;)

// windows.h
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define small char
#define near
#define far
#define pascal
#define cdecl
#define interface struct
#define IN
#define OUT
#define OPTIONAL
#define CONST const
#define VOID void
#define TRUE 1
#define FALSE 0
#define ERROR 0
#define DELETE 0x00010000L

// complex.h
#define I 1.0fi
#define complex _Complex
#define imaginary _Imaginary

// termios.h
#define B0 0000000
#define B50 0000001
#define ECHO 0000010
#define CR1 0001000

// sys/sysmacros.h
#define major(device) gnu_dev_major(device)
#define minor(device) gnu_dev_minor(device)
#define makedev(major_part, minor_part) gnu_dev_makedev(major_part, minor_part)

// X11
#define Bool int
#define Status int
#define None 0L
#define Success 0
#define Always 2

// ctype.h of the BSDs and of Newlib
#define _U 01
#define _L 02
#define _N 04
#define _X 0100

// GNU's compilers, unless -std asks for the standard's own language
#define unix 1
#define linux 1
