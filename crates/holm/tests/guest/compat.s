# A 32-bit program without libraries: arithmetic, strings, calls and system
# calls through int 0x80, as old programs make them.
.globl _start
.text
_start:
        mov     $1000000, %ecx
        mov     $0x12345678, %eax
        xor     %edx, %edx
1:      imul    $1664525, %eax, %eax
        add     $1013904223, %eax
        adc     $0, %edx
        rol     $3, %edx
        xor     %eax, %edx
        push    %edx
        aad
        das
        aaa
        pop     %edx
        loop    1b
        mov     %edx, result

        # rep movs and the segment registers that 64-bit code lacks.
        push    %ds
        pop     %es
        mov     $result, %esi
        mov     $copy, %edi
        mov     $1, %ecx
        rep movsl
        pusha
        popa
        mov     copy, %ebx
        bound   %eax, limits
        mov     $text, %edi
        mov     $8, %ecx
2:      rol     $4, %ebx
        mov     %ebx, %eax
        and     $15, %eax
        mov     digits(%eax), %al
        stosb
        loop    2b
        movb    $10, (%edi)

        mov     $4, %eax                # write
        mov     $1, %ebx
        mov     $text, %ecx
        mov     $9, %edx
        int     $0x80
        call    identify
        mov     $1, %eax                # exit
        mov     $3, %ebx
        int     $0x80

identify:
        mov     $122, %eax              # uname
        mov     $names, %ebx
        int     $0x80
        test    %eax, %eax
        jnz     3f
        mov     $4, %eax
        mov     $1, %ebx
        mov     $names, %ecx
        mov     $5, %edx
        int     $0x80
        mov     $4, %eax
        mov     $1, %ebx
        mov     $newline, %ecx
        mov     $1, %edx
        int     $0x80
3:      ret

.data
digits: .ascii "0123456789abcdef"
newline: .byte 10
limits: .long 0x80000000, 0x7fffffff
result: .long 0
copy:   .long 0
text:   .space 16
names:  .space 65 * 6
