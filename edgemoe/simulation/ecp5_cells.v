// Cells of an ECP5 that yosys has no model of: multiplier, adder and block RAM, as far as this design uses them; plain Verilog,
// for Verilator and Icarus. What is not modelled ends the simulation with an error: it must not pass unnoticed.
//
// Source: Lattice FPGA-TN-02205 (sysDSP), FPGA-TN-02204 (memory), and the maps of yosys (lattice/brams_map_16kd.v).

// 18 x 18 bits, signed or unsigned, with registers in front, halfway and behind where the parameters ask for them.
module MULT18X18D (
    input  A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input  B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input  C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
    input  SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, CLK0, CLK1, CLK2, CLK3, CE0, CE1, CE2, CE3, RST0, RST1, RST2, RST3,
    output ROA17, ROA16, ROA15, ROA14, ROA13, ROA12, ROA11, ROA10, ROA9, ROA8, ROA7, ROA6, ROA5, ROA4, ROA3, ROA2, ROA1, ROA0,
    output ROB17, ROB16, ROB15, ROB14, ROB13, ROB12, ROB11, ROB10, ROB9, ROB8, ROB7, ROB6, ROB5, ROB4, ROB3, ROB2, ROB1, ROB0,
    output SIGNEDP, P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
    parameter REG_INPUTA_CLK = "NONE";
    parameter REG_INPUTA_CE = "CE0";
    parameter REG_INPUTA_RST = "RST0";
    parameter REG_INPUTB_CLK = "NONE";
    parameter REG_INPUTB_CE = "CE0";
    parameter REG_INPUTB_RST = "RST0";
    parameter REG_INPUTC_CLK = "NONE";
    parameter REG_PIPELINE_CLK = "NONE";
    parameter REG_PIPELINE_CE = "CE0";
    parameter REG_PIPELINE_RST = "RST0";
    parameter REG_OUTPUT_CLK = "NONE";
    parameter REG_OUTPUT_CE = "CE0";
    parameter REG_OUTPUT_RST = "RST0";
    parameter CLK0_DIV = "ENABLED";
    parameter GSR = "ENABLED";
    parameter RESETMODE = "SYNC";
    parameter MULT_BYPASS = "DISABLED";
    parameter SOURCEB_MODE = "B_SHIFT";

    initial if ((REG_INPUTA_CLK != "NONE" && REG_INPUTA_CLK != "CLK0") || (REG_INPUTB_CLK != "NONE" && REG_INPUTB_CLK != "CLK0") ||
                (REG_PIPELINE_CLK != "NONE" && REG_PIPELINE_CLK != "CLK0") || (REG_OUTPUT_CLK != "NONE" && REG_OUTPUT_CLK != "CLK0") ||
                REG_INPUTC_CLK != "NONE" || MULT_BYPASS != "DISABLED" || RESETMODE != "SYNC") begin
        $display("MULT18X18D: a mode that is not modelled");
        $finish;
    end

    wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    reg [18:0] a_register, b_register;  // with one bit more for the sign
    reg [35:0] half_register, p_register;
    initial begin
        a_register = 0; b_register = 0; half_register = 0; p_register = 0;
    end
    wire [18:0] a_extended = {SIGNEDA & a[17], a}, b_extended = {SIGNEDB & b[17], b};
    wire signed [18:0] x = REG_INPUTA_CLK == "NONE" ? a_extended : a_register;
    wire signed [18:0] y = REG_INPUTB_CLK == "NONE" ? b_extended : b_register;
    wire signed [37:0] product = x * y;
    wire [35:0] half = REG_PIPELINE_CLK == "NONE" ? product[35:0] : half_register;
    always @(posedge CLK0) begin
        if (RST0) begin
            a_register <= 0;
            b_register <= 0;
            half_register <= 0;
            p_register <= 0;
        end else if (CE0) begin
            a_register <= a_extended;
            b_register <= b_extended;
            half_register <= product[35:0];
            p_register <= half;
        end
    end
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = REG_OUTPUT_CLK == "NONE" ? half : p_register;
    assign {ROA17, ROA16, ROA15, ROA14, ROA13, ROA12, ROA11, ROA10, ROA9, ROA8, ROA7, ROA6, ROA5, ROA4, ROA3, ROA2, ROA1, ROA0} = x[17:0];
    assign {ROB17, ROB16, ROB15, ROB14, ROB13, ROB12, ROB11, ROB10, ROB9, ROB8, ROB7, ROB6, ROB5, ROB4, ROB3, ROB2, ROB1, ROB0} = y[17:0];
    assign SIGNEDP = SIGNEDA | SIGNEDB;
endmodule

// The sum of two products, with a register behind it. Of 54 bits that an operand can have, a product sets 36 and its sign the rest.
module ALU54B (
    input  SIGNEDIA, SIGNEDIB, CLK0, CE0, RST0,
    input  A35, A34, A33, A32, A31, A30, A29, A28, A27, A26, A25, A24, A23, A22, A21, A20, A19, A18, A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input  B35, B34, B33, B32, B31, B30, B29, B28, B27, B26, B25, B24, B23, B22, B21, B20, B19, B18, B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input  MA35, MA34, MA33, MA32, MA31, MA30, MA29, MA28, MA27, MA26, MA25, MA24, MA23, MA22, MA21, MA20, MA19, MA18, MA17, MA16, MA15, MA14, MA13, MA12, MA11, MA10, MA9, MA8, MA7, MA6, MA5, MA4, MA3, MA2, MA1, MA0,
    input  MB35, MB34, MB33, MB32, MB31, MB30, MB29, MB28, MB27, MB26, MB25, MB24, MB23, MB22, MB21, MB20, MB19, MB18, MB17, MB16, MB15, MB14, MB13, MB12, MB11, MB10, MB9, MB8, MB7, MB6, MB5, MB4, MB3, MB2, MB1, MB0,
    input  OP10, OP9, OP8, OP7, OP6, OP5, OP4, OP3, OP2, OP1, OP0,
    output R53, R52, R51, R50, R49, R48, R47, R46, R45, R44, R43, R42, R41, R40, R39, R38, R37, R36, R35, R34, R33, R32, R31, R30, R29, R28, R27, R26, R25, R24, R23, R22, R21, R20, R19, R18, R17, R16, R15, R14, R13, R12, R11, R10, R9, R8, R7, R6, R5, R4, R3, R2, R1, R0
);
    parameter REG_OUTPUT0_CLK = "NONE";
    parameter REG_OUTPUT0_CE = "CE0";
    parameter REG_OUTPUT0_RST = "RST0";
    parameter REG_OUTPUT1_CLK = "NONE";
    parameter REG_OUTPUT1_CE = "CE0";
    parameter REG_OUTPUT1_RST = "RST0";
    parameter CLK0_DIV = "ENABLED";
    parameter GSR = "ENABLED";
    parameter RESETMODE = "SYNC";
    parameter MULT9_MODE = "DISABLED";
    parameter LEGACY = "DISABLED";

    wire [35:0] ma = {MA35, MA34, MA33, MA32, MA31, MA30, MA29, MA28, MA27, MA26, MA25, MA24, MA23, MA22, MA21, MA20, MA19, MA18, MA17, MA16, MA15, MA14, MA13, MA12, MA11, MA10, MA9, MA8, MA7, MA6, MA5, MA4, MA3, MA2, MA1, MA0};
    wire [35:0] mb = {MB35, MB34, MB33, MB32, MB31, MB30, MB29, MB28, MB27, MB26, MB25, MB24, MB23, MB22, MB21, MB20, MB19, MB18, MB17, MB16, MB15, MB14, MB13, MB12, MB11, MB10, MB9, MB8, MB7, MB6, MB5, MB4, MB3, MB2, MB1, MB0};
    wire [10:0] op = {OP10, OP9, OP8, OP7, OP6, OP5, OP4, OP3, OP2, OP1, OP0};
    // OP1 and OP0: operand A is product A; OP3 and OP2: B is product B; OP6 to OP4: C is 0; OP10 to OP7: A + B + C
    always @(posedge CLK0) if (op != 11'b0100_000_01_01) begin
        $display("ALU54B: an operation that is not modelled");
        $finish;
    end
    initial if (REG_OUTPUT0_CLK != "CLK0" || REG_OUTPUT1_CLK != "CLK0" || MULT9_MODE != "DISABLED" || LEGACY != "DISABLED" ||
                RESETMODE != "SYNC") begin
        $display("ALU54B: a mode that is not modelled");
        $finish;
    end
    reg [53:0] r_register;
    initial r_register = 0;
    always @(posedge CLK0) begin
        if (RST0) r_register <= 0;
        else if (CE0) r_register <= {{18{SIGNEDIA & ma[35]}}, ma} + {{18{SIGNEDIB & mb[35]}}, mb};
    end
    assign {R53, R52, R51, R50, R49, R48, R47, R46, R45, R44, R43, R42, R41, R40, R39, R38, R37, R36, R35, R34, R33, R32, R31, R30, R29, R28, R27, R26, R25, R24, R23, R22, R21, R20, R19, R18, R17, R16, R15, R14, R13, R12, R11, R10, R9, R8, R7, R6, R5, R4, R3, R2, R1, R0} = r_register;
endmodule

// 1024 rows of 18 bits with two ports of 1, 2, 4, 9 or 18 bits, or a writing port A and a reading port B of up to 36.
//
// What a port reads of a row that the other one writes in the same cycle is not defined, since the design is mapped with
// -no-rw-check: here it is wrong. Both ports must have one clock for that to be noticed.
module DP16KD (
    input  DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0,
    input  ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
    input  CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0,
    input  DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
    input  ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
    input  CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18;
    parameter DATA_WIDTH_B = 18;
    parameter REGMODE_A = "NOREG";
    parameter REGMODE_B = "NOREG";
    parameter RESETMODE = "SYNC";
    parameter ASYNC_RESET_RELEASE = "SYNC";
    parameter CSDECODE_A = "0b000";
    parameter CSDECODE_B = "0b000";
    parameter WRITEMODE_A = "NORMAL";
    parameter WRITEMODE_B = "NORMAL";
    parameter CLKAMUX = "CLKA";
    parameter CLKBMUX = "CLKB";
    parameter GSR = "ENABLED";
    parameter [319:0] INITVAL_00 = 320'h0;
    parameter [319:0] INITVAL_01 = 320'h0;
    parameter [319:0] INITVAL_02 = 320'h0;
    parameter [319:0] INITVAL_03 = 320'h0;
    parameter [319:0] INITVAL_04 = 320'h0;
    parameter [319:0] INITVAL_05 = 320'h0;
    parameter [319:0] INITVAL_06 = 320'h0;
    parameter [319:0] INITVAL_07 = 320'h0;
    parameter [319:0] INITVAL_08 = 320'h0;
    parameter [319:0] INITVAL_09 = 320'h0;
    parameter [319:0] INITVAL_0A = 320'h0;
    parameter [319:0] INITVAL_0B = 320'h0;
    parameter [319:0] INITVAL_0C = 320'h0;
    parameter [319:0] INITVAL_0D = 320'h0;
    parameter [319:0] INITVAL_0E = 320'h0;
    parameter [319:0] INITVAL_0F = 320'h0;
    parameter [319:0] INITVAL_10 = 320'h0;
    parameter [319:0] INITVAL_11 = 320'h0;
    parameter [319:0] INITVAL_12 = 320'h0;
    parameter [319:0] INITVAL_13 = 320'h0;
    parameter [319:0] INITVAL_14 = 320'h0;
    parameter [319:0] INITVAL_15 = 320'h0;
    parameter [319:0] INITVAL_16 = 320'h0;
    parameter [319:0] INITVAL_17 = 320'h0;
    parameter [319:0] INITVAL_18 = 320'h0;
    parameter [319:0] INITVAL_19 = 320'h0;
    parameter [319:0] INITVAL_1A = 320'h0;
    parameter [319:0] INITVAL_1B = 320'h0;
    parameter [319:0] INITVAL_1C = 320'h0;
    parameter [319:0] INITVAL_1D = 320'h0;
    parameter [319:0] INITVAL_1E = 320'h0;
    parameter [319:0] INITVAL_1F = 320'h0;
    parameter [319:0] INITVAL_20 = 320'h0;
    parameter [319:0] INITVAL_21 = 320'h0;
    parameter [319:0] INITVAL_22 = 320'h0;
    parameter [319:0] INITVAL_23 = 320'h0;
    parameter [319:0] INITVAL_24 = 320'h0;
    parameter [319:0] INITVAL_25 = 320'h0;
    parameter [319:0] INITVAL_26 = 320'h0;
    parameter [319:0] INITVAL_27 = 320'h0;
    parameter [319:0] INITVAL_28 = 320'h0;
    parameter [319:0] INITVAL_29 = 320'h0;
    parameter [319:0] INITVAL_2A = 320'h0;
    parameter [319:0] INITVAL_2B = 320'h0;
    parameter [319:0] INITVAL_2C = 320'h0;
    parameter [319:0] INITVAL_2D = 320'h0;
    parameter [319:0] INITVAL_2E = 320'h0;
    parameter [319:0] INITVAL_2F = 320'h0;
    parameter [319:0] INITVAL_30 = 320'h0;
    parameter [319:0] INITVAL_31 = 320'h0;
    parameter [319:0] INITVAL_32 = 320'h0;
    parameter [319:0] INITVAL_33 = 320'h0;
    parameter [319:0] INITVAL_34 = 320'h0;
    parameter [319:0] INITVAL_35 = 320'h0;
    parameter [319:0] INITVAL_36 = 320'h0;
    parameter [319:0] INITVAL_37 = 320'h0;
    parameter [319:0] INITVAL_38 = 320'h0;
    parameter [319:0] INITVAL_39 = 320'h0;
    parameter [319:0] INITVAL_3A = 320'h0;
    parameter [319:0] INITVAL_3B = 320'h0;
    parameter [319:0] INITVAL_3C = 320'h0;
    parameter [319:0] INITVAL_3D = 320'h0;
    parameter [319:0] INITVAL_3E = 320'h0;
    parameter [319:0] INITVAL_3F = 320'h0;

    initial if (CLKAMUX != "CLKA" || CLKBMUX != "CLKB" ||
                CSA2 || CSA1 || CSA0 || CSB2 || CSB1 || CSB0) begin
        $display("DP16KD: a mode that is not modelled");
        $finish;
    end

    always @(posedge RSTA or posedge RSTB) if (RESETMODE != "SYNC") begin
        $display("DP16KD: an asynchronous reset is not modelled");
        $finish;
    end

    localparam [20479:0] INIT = {
        INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39, INITVAL_38,
        INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31, INITVAL_30,
        INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A, INITVAL_29, INITVAL_28,
        INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20,
        INITVAL_1F, INITVAL_1E, INITVAL_1D, INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18,
        INITVAL_17, INITVAL_16, INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10,
        INITVAL_0F, INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
        INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01, INITVAL_00
    };
    localparam [17:0] WRONG = 18'h2a5c3;

    reg [17:0] mem [0:1023];
    integer i;
    initial for (i = 0; i < 1024; i = i + 1) mem[i] = INIT[i / 16 * 320 + i % 16 * 20 +: 18];

    wire [13:0] ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    wire [17:0] dia = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0}, dib = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0};
    reg [17:0] doa, dob;      // of ports up to 18 bits
    reg [35:0] wide;          // of a port B of 36 bits
    reg [17:0] doa_register, dob_register;
    reg [35:0] wide_register;
    initial begin
        doa = 0; dob = 0; wide = 0;
        doa_register = 0; dob_register = 0; wide_register = 0;
    end

    // A port that takes both sides has to set both, since it is not known which one a half obeys.
    localparam OUTA = REGMODE_A == "OUTREG", OUTB = REGMODE_B == "OUTREG";
    localparam BOTH = DATA_WIDTH_A == 36 && (OUTA || OUTB);
    always @(posedge CLKB) if (BOTH && (!OUTA || !OUTB || OCEA != OCEB || !CLKA)) begin
        $display("DP16KD: output registers of a wide port that differ are not modelled");
        $finish;
    end
    always @(posedge RSTA or posedge RSTB) if (OUTA || OUTB) begin
        $display("DP16KD: the reset of an output register is not modelled");
        $finish;
    end

    wire [17:0] outa = OUTA ? doa_register : doa, outb = OUTB ? dob_register : dob;
    wire [35:0] outw = OUTB ? wide_register : wide;
    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0} = DATA_WIDTH_B == 36 ? outw[17:0] : outa;
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0} = DATA_WIDTH_B == 36 ? outw[35:18] : outb;

    // Bits of a row that an access of this width at this address touches; and where they begin.
    function [17:0] lanes(input integer width, input [13:0] address);
        case (width)
            1: lanes = 18'h1 << first(width, address);
            2: lanes = 18'h3 << first(width, address);
            4: lanes = 18'hf << first(width, address);
            9: lanes = 18'h1ff << first(width, address);
            default: lanes = {{9{address[1]}}, {9{address[0]}}};  // byte enables
        endcase
    endfunction
    function [4:0] first(input integer width, input [13:0] address);
        case (width)
            1: first = (address[3] ? 9 : 0) + address[2:0];
            2: first = (address[3] ? 9 : 0) + {address[2:1], 1'b0};
            4: first = (address[3] ? 9 : 0) + {address[2], 2'b00};
            9: first = address[3] ? 9 : 0;
            default: first = 0;
        endcase
    endfunction
    function [17:0] cut(input integer width);
        cut = width >= 18 ? 18'h3ffff : (18'h1 << width) - 18'h1;
    endfunction

    wire [9:0] rowa = ada[13:4], rowb = adb[13:4];
    wire writesa = CEA & WEA & ~RSTA, writesb = CEB & WEB & ~RSTB;
    wire [17:0] lanesa = lanes(DATA_WIDTH_A, ada), lanesb = lanes(DATA_WIDTH_B, adb);
    wire [4:0] firsta = first(DATA_WIDTH_A, ada), firstb = first(DATA_WIDTH_B, adb);
    wire [17:0] spreada = dia << firsta, spreadb = dib << firstb;
    wire [35:0] seen = {mem[{rowb[9:1], 1'b1}], mem[{rowb[9:1], 1'b0}]};

    always @(posedge CLKA) if (OCEA) doa_register <= doa;
    always @(posedge CLKB) if (OCEB) begin
        dob_register <= dob;
        wide_register <= wide;
    end

    always @(posedge CLKA) begin
        if (writesa && DATA_WIDTH_A == 36) begin
            if (ada[0]) mem[{rowa[9:1], 1'b0}][8:0] <= dia[8:0];
            if (ada[1]) mem[{rowa[9:1], 1'b0}][17:9] <= dia[17:9];
            if (ada[2]) mem[{rowa[9:1], 1'b1}][8:0] <= dib[8:0];
            if (ada[3]) mem[{rowa[9:1], 1'b1}][17:9] <= dib[17:9];
        end else if (writesa)
            mem[rowa] <= (mem[rowa] & ~lanesa) | (spreada & lanesa);
        if (RSTA) doa <= 0;
        else if (CEA && (!WEA || WRITEMODE_A == "READBEFOREWRITE"))
            doa <= (writesb && CLKB && rowa == rowb ? WRONG : mem[rowa] >> firsta) & cut(DATA_WIDTH_A);
        else if (CEA && WRITEMODE_A == "WRITETHROUGH") doa <= dia & cut(DATA_WIDTH_A);
    end

    always @(posedge CLKB) begin
        if (writesb) mem[rowb] <= (mem[rowb] & ~lanesb) | (spreadb & lanesb);
        if (RSTB) begin
            dob <= 0;
            wide <= 0;
        end else if (CEB && (!WEB || WRITEMODE_B == "READBEFOREWRITE")) begin
            dob <= (writesa && CLKA && (DATA_WIDTH_A == 36 ? rowa[9:1] == rowb[9:1] && |ada[3:0] : rowa == rowb && |lanesa) ?
                WRONG : mem[rowb] >> firstb) & cut(DATA_WIDTH_B);
            wide <= writesa && CLKA && rowa[9:1] == rowb[9:1] && |ada[3:0] ? {WRONG, WRONG} : seen;
        end else if (CEB && WRITEMODE_B == "WRITETHROUGH") dob <= dib & cut(DATA_WIDTH_B);
    end
endmodule
